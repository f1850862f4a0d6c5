"""`check_kind` passes the built-in kinds, and names what is wrong with others."""

from __future__ import annotations

import pytest
import torch
from tests.grids import first_of

from gkd_core.api import Classification, Evaluation, Regression
from gkd_core.plugins import registry
from gkd_core.testing import check_kind

TEXTS = ["a good old film", "bad", "the plot of a bad film is good", "very good", "a film", "old"]
NAMES = ["pos", "neg", "neg", "pos", "pos", "neg"]


def _rows(**columns):
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


WORDS = [text.split() for text in TEXTS]
PAIRS = _rows(text1=TEXTS, text2=TEXTS[::-1], score=[0.5, 1.5, 2.0, 3.5, 0.0, 1.0])
ROWS = {
    "classification": _rows(text=TEXTS, label=NAMES),
    "regression": _rows(text=TEXTS, label=[0.5, 1.5, 2.0, 3.5, 0.0, 1.0]),
    "multi-label": _rows(text=TEXTS, labels=[["a", "b"], [], ["c"], ["b"], ["a", "c"], ["c"]]),
    "token-classification": _rows(
        tokens=WORDS, tags=[["B-X" if word == "film" else "O" for word in row] for row in WORDS]
    ),
    "multiple-choice": _rows(
        question=TEXTS, choices=[["good", "bad film", "old"]] * 6, label=[0, 1, 2, 0, 1, 2]
    ),
    "span-extraction": _rows(
        question=["what is good ?", "which film ?"] * 3,
        context=[" ".join(TEXTS[n:]) for n in (0, 1, 0, 2, 0, 3)],
        answers=[{"text": ["film"], "answer_start": [11]}, {"text": [], "answer_start": []}] * 3,
    ),
    "span-classification": _rows(
        text1=TEXTS,
        text2=TEXTS[::-1],
        spans=[[[0, 0, 1], [1, 0, 3]]] * 3 + [[[1, 0, 3], [0, 0, 3]]] * 3,
        label=NAMES,
    ),
    "masked-cloze": _rows(
        text=[f"{text} [BLANK] good" for text in TEXTS],
        choices=[["a film", "old", "bad"], ["plot", "a"], ["bad old film"]] * 2,
        label=[2, 1, 0, 1, 0, 0],
    ),
    "causal-cloze": _rows(text=[f"{text} is [BLANK]" for text in TEXTS], label=["good", "bad"] * 3),
    "embedding": PAIRS,
    "similarity": PAIRS,
    "masked-lm": _rows(text=TEXTS[:1] * 2 + TEXTS[2:3] * 4),
    "causal-lm": _rows(text=TEXTS[:1] * 2 + TEXTS[2:3] * 4),
}


@pytest.mark.parametrize("name", first_of(registry().kinds))
def test_every_built_in_kind_passes(name):
    check_kind(type(registry().kind(name)), ROWS[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "classification",
        "span-classification",
        "embedding",
        pytest.param("masked-cloze", marks=pytest.mark.exhaustive),
        pytest.param("causal-cloze", marks=pytest.mark.exhaustive),
    ],
)
def test_ranks_measure_the_same(name):
    check_kind(type(registry().kind(name)), ROWS[name], ranks=2)


class Undocumented(Classification):
    name = "undocumented"
    __doc__ = None


class Unmeasured(Classification):
    """It promises a metric that it does not compute."""

    name = "unmeasured"
    metrics = ("accuracy", "macro_f1", "kappa")


class Sticky(Classification):
    """Its labels do not follow the classes."""

    name = "sticky"

    def renumber(self, label, ids, count=0):
        return label


class Wide(Regression):
    """Its model has more outputs than it says."""

    name = "wide"

    def configure(self, config, classes):
        config.num_labels = 2


class Shapeless(Classification):
    """It says that it predicts tokens."""

    name = "shapeless"
    predicted = "token"


class Forgetful(Classification):
    """It loses the order of the rows."""

    name = "forgetful"

    def summarize(self, parts, split):
        logits, labels, _ = map(torch.cat, zip(*parts, strict=True))
        predictions = self.score(logits)
        return Evaluation(self.measure(logits, predictions, labels), predictions)


class Halved(Classification):
    """Its draws of rows have another accuracy than all rows."""

    name = "halved"

    def remeasure(self, evaluation, split, classes):
        measure = super().remeasure(evaluation, split, classes)
        return lambda rows: measure(rows) | {"accuracy": measure(rows)["accuracy"] / 2}


class Nameless(Classification):
    """Its draws of rows lack its main metric."""

    name = "nameless"

    def remeasure(self, evaluation, split, classes):
        return lambda rows: {"macro_f1": 1.0}


class Crowded(Classification):
    """Its labels depend on the other rows of the batch."""

    name = "crowded"

    def collate(self, rows):
        ids, labels = super().collate(rows)
        return ids, labels * 0 if len(rows.ids) > 1 else labels


class Unplanned(Regression):
    """The rows to plan with have class ids."""

    name = "unplanned"

    def planned(self, rows, length, token, classes):
        return Classification().planned(rows, length, token, classes)


class Unknown(Classification):
    """It does not recognize its own models."""

    name = "unknown"

    def made(self, config):
        return False


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Undocumented, "a docstring is needed"),
        (Unmeasured, "the evaluation lacks .'kappa'."),
        (Halved, "all rows, measured by `remeasure`, change accuracy"),
        (Nameless, "`remeasure` lacks .'accuracy'."),
        (Sticky, "`renumber` gives other classes"),
        (Wide, "`outputs` is 1, but `configure` writes 2"),
        (Shapeless, r"logits have the shape \(6, 2\); `predicted` = 'token'"),
        (Forgetful, "a model agrees with itself on"),
        (Crowded, "the label of a row depends on the other rows"),
        (Unplanned, "labels of `planned` differ"),
        (Unknown, "`made` does not recognize a model of this kind"),
    ],
)
def test_what_is_wrong_with_a_kind_is_named(kind, message):
    rows = ROWS["regression" if issubclass(kind, Regression) else "classification"]
    with pytest.raises(AssertionError, match=f"{kind.name}: {message}"):
        check_kind(kind, rows)
