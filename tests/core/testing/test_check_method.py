"""`check_method` finds what is wrong with a method, and nothing with a right one."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from pydantic import Field, PositiveInt

from gkd_core.api import Method, cosine, mse
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
