"""Official metrics of the kinds against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gkd_core.contract.task import Split
from gkd_core.kinds.classification import Classification
from gkd_core.kinds.metrics import Metric, f1_of_counts, macro_f1
from gkd_core.kinds.multi_label import MultiLabel
from gkd_core.kinds.span_extraction import normalized, squad_scores
from gkd_core.kinds.task_kind import Evaluation
from gkd_core.kinds.token_classification import entity_scores
from gkd_core.plugins import registry


def test_f1_without_anything_is_zero():
    assert f1_of_counts(0, 0) == 0.0
    assert f1_of_counts(3, 8) == 0.75


def test_macro_f1_by_hand():
    predictions, labels = torch.tensor([0, 0, 2, 5, 5]), torch.tensor([0, 2, 2, 5, 1])
    # Classes 0, 2 and 5: one hit, three marks; class 1: no hit; 3 and 4 do not occur.
    assert macro_f1(predictions, labels) == pytest.approx((2 / 3 + 2 / 3 + 2 / 3) / 4, abs=1e-12)


def test_classes_are_measured_again_as_they_were():
    kind, labels = Classification(), [0, 1, 2, 1, 0, 2]
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    drawn = np.array([4, 4, 0, 2, 1])
    measure = kind.remeasure(
        Evaluation({}, kind.score(logits)), Split([""] * 6, None, labels), ("a", "b", "c")
    )
    chosen = logits[drawn]
    expected = kind.measure(chosen, kind.score(chosen), torch.tensor(labels)[drawn])
    assert measure(drawn) == {name: expected[name] for name in kind.metrics}


class Errors(Classification):
    """A kind of a plugin, whose metrics are its own."""

    metric = Metric("error", False)
    metrics = ("error",)

    def measure(self, logits, predictions, labels):
        return {"loss": 0.0, "error": float((predictions - labels).abs().double().mean())}


def test_a_subclass_is_measured_again_by_its_own_metrics():
    kind, logits = Errors(), torch.eye(3)
    evaluation = Evaluation({}, kind.score(logits), {"scores": logits})
    measure = kind.remeasure(evaluation, Split([""] * 3, None, [0, 2, 0]), ("a", "b", "c"))
    assert measure(np.array([0, 1, 2, 2]))["error"] == (0 + 1 + 2 + 2) / 4


HIGHER, LOWER = Metric("accuracy", True), Metric("perplexity", False)


@pytest.mark.parametrize(
    ("metric", "student", "teacher", "kept"),
    [
        (HIGHER, 0.6, 0.8, 0.75),
        (LOWER, 8.0, 6.0, 0.75),
        (HIGHER, 0.6, 0.0, math.nan),
        (HIGHER, 0.6, -0.2, math.nan),  # a correlation
        (HIGHER, math.nan, 0.5, math.nan),
        (HIGHER, 0.5, math.nan, math.nan),
        (LOWER, math.inf, 6.0, 0.0),
        (LOWER, 8.0, math.inf, math.nan),
    ],
)
def test_share_of_the_teachers_quality_needs_a_quality(metric, student, teacher, kept):
    assert metric.share(student, teacher) == pytest.approx(kept, nan_ok=True)


def test_every_value_is_better_than_nan():
    assert HIGHER.better(0.1, math.nan)
    assert LOWER.better(9.0, math.nan)
    assert not HIGHER.better(math.nan, 0.1)


def test_multi_label_metrics_by_hand():
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    logits = torch.tensor([[2.0, -1.0, -1.0], [-1.0, 3.0, 1.0], [-2.0, -2.0, -2.0], [1.0, 1.0, -1]])
    kind = MultiLabel()
    predictions = kind.score(logits)
    assert predictions.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]]
    found = kind.measure(logits, predictions, labels)
    # 4 hits of 5 predicted and 5 true marks; F1 of the classes 1, 1 and 0.
    assert found["micro_f1"] == pytest.approx(2 * 4 / (5 + 5))
    assert found["macro_f1"] == pytest.approx((1 + 1 + 0) / 3)
    assert found["exact"] == pytest.approx(2 / 4)
    bce = [
        -math.log(1 / (1 + math.exp(-z if y else z)))
        for row, marks in zip(logits.tolist(), labels.tolist(), strict=True)
        for z, y in zip(row, marks, strict=True)
    ]
    assert found["loss"] == pytest.approx(sum(bce) / 12, rel=1e-6)


@pytest.mark.parametrize(
    ("gold", "predicted", "f1"),
    [
        # The example of seqeval's documentation: one of two entities is right.
        (
            [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]],
            [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]],
            0.5,
        ),
        # An I of another type begins an entity, and an I after O does.
        ([["I-PER", "I-LOC"]], [["B-PER", "B-LOC"]], 1.0),
        ([["O", "I-PER"]], [["O", "B-PER"]], 1.0),
        # B after B separates; S and E end.
        ([["B-PER", "B-PER"]], [["B-PER", "I-PER"]], 0.0),
        ([["S-PER", "B-LOC", "E-LOC"]], [["S-PER", "B-LOC", "E-LOC"]], 1.0),
        ([["B-PER", "E-PER", "O"]], [["B-PER", "O", "O"]], 0.0),
        # Entities do not go on in the next sentence.
        ([["B-PER"], ["I-PER"]], [["B-PER"], ["B-PER"]], 1.0),
        ([["O"]], [["O"]], 0.0),
        # Types may contain a hyphen; tags without a type are of one type.
        ([["B-X-Y", "I-X-Y"]], [["B-X-Y", "I-X-Y"]], 1.0),
        ([["B", "I", "O"]], [["B", "I", "O"]], 1.0),
    ],
)
def test_entities_are_counted_as_conlleval_does(gold, predicted, f1):
    assert entity_scores(gold, predicted)["f1"] == pytest.approx(f1)


def test_precision_recall_and_accuracy_of_entities():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O"]]
    predicted = [["B-PER", "I-PER", "B-LOC", "B-LOC"], ["O", "O"]]
    found = entity_scores(gold, predicted)
    # Predicted: PER, LOC, LOC; true: PER, LOC, LOC; two are both.
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["accuracy"] == pytest.approx(4 / 6)


def test_answers_are_normalized_as_in_squad():
    assert normalized("The  Eiffel Tower!") == "eiffel tower"
    assert normalized("an A.I. lab") == "ai lab"
    assert normalized("theater") == "theater"


def test_exact_match_and_f1_take_the_best_answer():
    golds = [
        {"text": ["Denver Broncos", "The Broncos"]},
        {"text": ["in the park near Rome"]},
        {"text": []},
        {"text": []},
        {"text": ["four"]},
    ]
    found = squad_scores(["the broncos", "near Rome", "", "something", ""], golds)
    # The second shares 2 words: precision 1, recall 2/4 without the article.
    f1 = [1, 2 * 1 * 0.5 / 1.5, 1, 0, 0]
    assert found["exact_match"] == pytest.approx(100 * 2 / 5)
    assert found["f1"] == pytest.approx(100 * sum(f1) / 5)


@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [
        ("classification", [0, 2, 2, 1], 0.5),
        ("multi-label", [[1, 0], [1, 1], [0, 1], [1, 0]], 2 * 3 / (4 + 5)),
        ("multiple-choice", [0, 0, 1], 2 / 3),
        ("regression", [0.5, 1.0], 0),
        ("similarity", [0.5, 1.0], 0),
        ("embedding", [0.5, 1.0], 0),
        ("causal-lm", None, None),
        ("classification", None, None),
    ],
)
def test_a_guess_ignores_the_text(kind, labels, expected):
    found = registry().kind(kind).guess(labels)
    assert found == (None if expected is None else pytest.approx(expected))
