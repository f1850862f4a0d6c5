"""`check_method` finds what is wrong with a method, and nothing with a right one."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from pydantic import Field, PositiveInt

from gkd_core.api import Method, Term, cosine, mse
from gkd_core.testing import check_method
from gkd_core.testing.option_values import option_values

ONE = ["classification"]


def vectors(view):
    return view.hidden.cls[view.model.layers]


class Last(Method):
    """The cosine between the last states, of which subclasses are right or wrong variants."""

    name = "last"
    paper = "none"

    def reads(self, models, step):
        yield from ("student.hidden[last]|cls", "teacher.hidden[last]|cls")

    def loss(self, student, teacher, batch, step):
        return {"last": cosine(vectors(student), vectors(teacher), batch.samples)}


class Bank(Last):
    """Compares with the mean of the teacher's vectors so far, which it updates in place."""

    name = "bank"
    batch_coupled = True

    def __init__(self, config=None):
        super().__init__(config)
        self.mean = torch.zeros(32, dtype=torch.float64)

    def loss(self, student, teacher, batch, step):
        known = vectors(teacher)
        term = cosine(vectors(student), known + self.mean, batch.samples)
        self.mean += known.detach().mean(0)
        return {"bank": term}

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


class Late(Last):
    """Has no loss before the fourth step."""

    name = "late"

    def loss(self, student, teacher, batch, step):
        return super().loss(student, teacher, batch, step) if step.index >= 3 else {}


class Divides(Last):
    """Is not finite where its option is 0."""

    name = "divides"

    class Config(Method.Config):
        share: float = Field(0.5, ge=0, le=1, description="A share.")

    def loss(self, student, teacher, batch, step):
        (term,) = super().loss(student, teacher, batch, step).values()
        return {"divides": torch.tensor(1.0).div(self.config.share).item() * term}


class Scores(Last):
    """Takes the labels for class ids, which the values of a regression are not."""

    name = "scores"

    def loss(self, student, teacher, batch, step):
        (term,) = super().loss(student, teacher, batch, step).values()
        if batch.labels is not None and batch.labels.is_floating_point():
            return {"scores": float("inf") * term}
        return {"scores": term}


class FromTheStart(Method):
    """Compares the first positions, which in a row padded on the left are no tokens."""

    name = "from-the-start"
    paper = "A test"
    place = 0

    def reads(self, models, step):
        return ["student.hidden[1]", "teacher.hidden[1]"]

    def loss(self, student, teacher, batch, step):
        here, there = student.hidden[1][:, self.place], teacher.hidden[1][:, self.place]
        return {self.name: mse(here, there, batch.samples)}


def test_state_that_is_updated_in_place_is_no_false_alarm():
    check_method(Bank, kinds=ONE)


def test_a_method_that_waits_is_checked_from_its_first_step_on():
    check_method(Late, kinds=ONE, first_step=3)
    with pytest.raises(AssertionError, match="late on classification: `loss` returned no term"):
        check_method(Late, kinds=ONE)


def test_an_option_is_tried_at_its_bounds_unless_options_are_given():
    said = r"divides on classification with \{'share': 0.0\}: the loss is"
    with pytest.raises(AssertionError, match=said):
        check_method(Divides, kinds=ONE)
    check_method(Divides, {}, ONE)


def test_every_kind_that_a_method_declares_is_tried():
    with pytest.raises(AssertionError, match="scores on regression: the loss is inf"):
        check_method(Scores)
    check_method(Scores, kinds=ONE)


def test_values_of_options_are_choices_and_bounds_that_can_stand_alone():
    class Config(Method.Config):
        way: Literal["mean", "sum"] = "mean"
        quick: bool = False
        count: PositiveInt | Literal["all"] = 3
        ratio: float = Field(0.5, gt=0, le=1)
        place: int | None = Field(2, ge=-1, lt=5)
        name: str = "any"

    assert list(option_values(Config)) == [
        {"way": "sum"},
        {"quick": True},
        {"count": 1},
        {"count": "all"},
        {"ratio": 1.0},
        {"place": -1},
        {"place": 4},
        {"place": None},
    ]


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_a_method_that_counts_positions_from_the_left_is_found(kind):
    with pytest.raises(AssertionError, match="padding on the left of a decoder's rows changes"):
        check_method(FromTheStart, kinds=[kind])


class Wrong(Last):
    """The base of variants with one fault each, which the docstring says."""

    name = "wrong"

    def loss(self, student, teacher, batch, step):
        return {"wrong": self.compare(vectors(student), vectors(teacher), batch, step)}

    def compare(self, here, there, batch, step):
        return cosine(here, there, batch.samples)


class Halves(Wrong):
    """Halves the teacher's vectors where other methods read them too."""

    def compare(self, here, there, batch, step):
        there.div_(2)
        return super().compare(here, there, batch, step)


class Relabels(Wrong):
    """Changes the labels of the batch."""

    def compare(self, here, there, batch, step):
        batch.labels.clamp_(max=0)
        return super().compare(here, there, batch, step)


class Seeds(Wrong):
    """Seeds the generator from which dropout is drawn."""

    def compare(self, here, there, batch, step):
        torch.manual_seed(0)
        return super().compare(here, there, batch, step)


class OwnWeight(Wrong):
    """Has a projection that is neither trained nor saved."""

    def __init__(self, config=None):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.eye(32, dtype=torch.float64))

    def compare(self, here, there, batch, step):
        return super().compare(here @ self.weight, there, batch, step)


class IdleModule(Wrong):
    """Builds a projection whose gradient it cuts off."""

    def build_modules(self, models):
        return {"map": torch.nn.Linear(32, 32)}

    def compare(self, here, there, batch, step):
        return super().compare(here + self.modules["map"](here).detach(), there, batch, step)


class KeepsGraph(Wrong):
    """Keeps the student's vectors, with what computed them, for the next step."""

    batch_coupled = True
    before = None

    def compare(self, here, there, batch, step):
        before, self.before = self.before, here.mean(0)
        drift = 0.0 if before is None else (here - before).pow(2).mean()
        return super().compare(here, there, batch, step) + drift * Term(
            torch.ones(len(batch)), batch.samples
        )

    def state_dict(self):
        return {} if self.before is None else {"before": self.before}

    def load_state_dict(self, state):
        self.before = state.get("before")


class ForgetsLate(Wrong):
    """Counts from its third step on, and does not save the count."""

    count = 0

    def compare(self, here, there, batch, step):
        self.count += step.index >= 2
        return (1 + self.count) * super().compare(here, there, batch, step)


class EndsInNan(Wrong):
    """Divides by 0 in the last step."""

    def compare(self, here, there, batch, step):
        left = torch.tensor(float(step.total - 1 - step.index))
        return (left / left) * super().compare(here, there, batch, step)


class Deviation(Wrong):
    """Is not finite for one row, and does not say that it needs two."""

    batch_coupled = True

    def compare(self, here, there, batch, step):
        return (here.var(0) - there.var(0)).pow(2).mean() if len(batch) > 1 else here.sum() / 0


class ReadsLabels(Wrong):
    """Reads labels, and does not say that it needs them."""

    def compare(self, here, there, batch, step):
        return (1 + 0 * batch.labels.sum()) * super().compare(here, there, batch, step)


class Detached(Wrong):
    """Learns nothing."""

    def compare(self, here, there, batch, step):
        return super().compare(here.detach(), there, batch, step)


class SumsPrompts(Wrong):
    """Has losses at tokens that do not count."""

    def reads(self, models, step):
        return ["student.hidden[last]", "teacher.hidden[last]"]

    def loss(self, student, teacher, batch, step):
        apart = (student.hidden[-1] - teacher.hidden[-1]).pow(2).mean(-1)
        return {"wrong": Term(apart * batch.inputs["attention_mask"], batch.tokens)}


class RowMeans(SumsPrompts):
    """Divides by the number of targets of a row, which may have none."""

    def loss(self, student, teacher, batch, step):
        apart = (student.hidden[-1] - teacher.hidden[-1]).pow(2).mean(-1)
        mask = batch.targets.mask
        return {"wrong": (apart * mask).sum(-1) / mask.sum(-1)}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Halves, r"changes teacher\.hidden\[4\]\|cls in place"),
        (Relabels, r"changes batch\.labels in place"),
        (Seeds, "draws from the global generator of torch, or seeds it"),
        (OwnWeight, r"a tensor of shape \(32, 32\) that is not trained"),
        (IdleModule, "no gradient reaches any weight of `build_modules`"),
        (KeepsGraph, "backward fails in step 2 .*detach what is kept"),
        (ForgetsLate, "after a resume the loss differs"),
        (EndsInNan, "in step 10 of 10: the loss is nan"),
        (Deviation, r"with 1 row \(`min_samples`\): the loss is "),
        (ReadsLabels, "fails without labels .*declare `needs_labels`"),
        (Detached, "no gradient reaches the student"),
    ],
)
def test_a_wrong_method_is_found(method, message):
    with pytest.raises(AssertionError, match=message):
        check_method(method, {}, ONE)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (SumsPrompts, "'wrong' has values at items that do not count"),
        (RowMeans, "with a row that has no target: the loss is nan"),
    ],
)
def test_prompts_and_rows_without_targets_are_tried(method, message):
    with pytest.raises(AssertionError, match=message):
        check_method(method, {}, ["causal-lm"])


class Fails(Divides):
    """Raises an error of its own at a bound of its option."""

    name = "fails"

    def loss(self, student, teacher, batch, step):
        return {"fails": 1 / self.config.share * vectors(student).pow(2).mean(-1)}


def test_an_error_of_the_method_tells_what_was_tried():
    with pytest.raises(ZeroDivisionError) as error:
        check_method(Fails, kinds=ONE)
    assert error.value.__notes__ == ["while checking fails on classification with {'share': 0.0}"]
