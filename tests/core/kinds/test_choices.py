"""Rows with different numbers of choices: no loss and no prediction sees those that a row lacks."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from gkd_core.contract.batch import Items
from gkd_core.contract.task import Split
from gkd_core.data.collate import Collator
from gkd_core.evaluation.evaluate import evaluate
from gkd_core.losses import (
    cross_entropy,
    divergence,
    hard_labels,
    js,
    kl,
    logits_mse,
    reverse_kl,
    skew_kl,
    soft_cross_entropy,
    soft_labels,
    total_variation,
)
from gkd_core.plugins import registry
from gkd_core.testing import check_kind
from gkd_core.testing.check_method import MethodTrial
from gkd_core.testing.tiny import model_for

CHOICES = [["red", "blue car", "tree"], ["no"], ["yes", "no"], ["boat", "door", "red tree"]]
SPLIT = Split(["the car", "the red road", "is it", "a"], CHOICES, [2, 0, 1, 0])
ROWS = [
    {"question": text, "choices": choices, "label": label}
    for text, choices, label in zip(SPLIT.text, CHOICES, SPLIT.labels, strict=True)
]
KIND = registry().kind("multiple-choice")


def classes_of(count):
    return tuple(map(str, range(count)))


def batch_of(tokenizer, rows, most=3, split=SPLIT):
    encoded = KIND.encode(split, tokenizer, 16, classes_of(most))
    return Collator(tokenizer, KIND, 0.15, 0).collate(encoded, rows, 0, 16)


def test_a_row_has_the_sequences_of_its_own_choices(tokenizer):
    encoded = KIND.encode(SPLIT, tokenizer, 16, classes_of(3))
    assert (len(encoded), encoded.per_row, encoded.counts.tolist()) == (4, 3, [3, 1, 2, 3])
    assert encoded.lengths.tolist() == [7, 7, 6, 6]
    batch = batch_of(tokenizer, [2, 0])
    assert batch.inputs["input_ids"].shape == (5, 16)
    assert batch.inputs["choices"].tolist() == [[True, True, False], [True, True, True]]
    assert batch.tokens.count == encoded.lengths[2] * 2 + 6 + 7 + 6
    assert (batch.samples.count, batch.targets.count) == (2, 2)


def test_rows_with_all_choices_need_no_mark(tokenizer):
    even = Split(["a", "b"], [["red", "blue"], ["no", "yes"]], [0, 1])
    assert "choices" not in batch_of(tokenizer, [0, 1], 2, even).inputs
    # Another split has a row with more choices.
    assert batch_of(tokenizer, [0, 1], 3, even).inputs["choices"].shape == (2, 3)


def test_the_kind_keeps_its_contract():
    check_kind(type(KIND), ROWS)


@pytest.mark.slow
def test_ranks_measure_the_same():
    check_kind(type(KIND), ROWS, ranks=2)


def test_scores_are_those_of_each_row_alone(tokenizer):
    model = model_for(KIND, classes_of(4), layers=1, seed=0)
    with torch.no_grad():
        together = model(**batch_of(tokenizer, [0, 1, 2, 3], 4).inputs).logits
        for row, choices in enumerate(CHOICES):
            alone = model(**batch_of(tokenizer, [row], 4).inputs).logits
            torch.testing.assert_close(together[row], alone[0])
            assert together[row].isfinite().tolist() == [n < len(choices) for n in range(4)]


def test_a_choice_that_a_row_lacks_is_never_predicted(tokenizer):
    model = model_for(KIND, classes_of(3), layers=1, seed=0)
    with torch.no_grad():
        model.classifier.bias.fill_(-1e3)
    encoded = KIND.encode(SPLIT, tokenizer, 16, classes_of(3))
    collator = Collator(tokenizer, KIND, 0.15, 0)
    found = evaluate(model, encoded, collator, KIND, torch.device("cpu"))
    assert all(p < len(row) for p, row in zip(found.predictions.tolist(), CHOICES, strict=True))
    with torch.no_grad():
        logits = model(**batch_of(tokenizer, [0, 1, 2, 3]).inputs).logits
    losses = [
        torch.nn.functional.cross_entropy(row[: len(own)], torch.tensor(label))
        for row, own, label in zip(logits, CHOICES, SPLIT.labels, strict=True)
    ]
    assert found.metrics["loss"] == pytest.approx(float(sum(losses) / 4), abs=1e-6)


@divergence
def squared(log_student, log_teacher, sum):
    return sum((log_student.exp() - log_teacher.exp()).square())


DISTANCES = {
    "kl": kl,
    "reverse-kl": reverse_kl,
    "js": partial(js, beta=0.3),
    "skew-kl": skew_kl,
    "total-variation": total_variation,
    "soft-cross-entropy": soft_cross_entropy,
    "own": squared,
    "soft-labels": soft_labels,
    "mse": partial(logits_mse, factor=0.5),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_a_loss_is_that_of_the_choices_that_there_are(name):
    distance = DISTANCES[name]
    temperature = () if name == "mse" else (2.0,)
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 3, generator=draw, dtype=torch.float64)
    absent = torch.tensor([[n >= len(own) for n in range(3)] for own in CHOICES])
    masked = student.masked_fill(absent, -torch.inf).requires_grad_()
    known = teacher.masked_fill(absent, -torch.inf)
    every = Items.where("target", torch.ones(4, dtype=torch.bool))
    one = Items.where("target", torch.ones(1, dtype=torch.bool))
    values = distance(masked, known, every, *temperature).values
    (gradient,) = torch.autograd.grad(values.sum(), masked)
    assert gradient[absent].eq(0).all()
    for row, own in enumerate(CHOICES):
        cut = student[row : row + 1, : len(own)].clone().requires_grad_()
        # A distribution over one choice is no value.
        term = distance(cut, teacher[row : row + 1, : len(own)], one, *temperature)
        if name == "soft-labels" and len(own) == 1:
            assert values[row] == 0
            continue
        (expected,) = torch.autograd.grad(term.values.sum(), cut)
        torch.testing.assert_close(values[row], term.values[0])
        torch.testing.assert_close(gradient[row, : len(own)], expected[0])


def test_labels_teach_nothing_about_choices_that_a_row_lacks():
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, -torch.inf, -torch.inf]]).requires_grad_()
    over = Items.where("target", torch.ones(2, dtype=torch.bool))
    labels = torch.tensor([0, 0])
    for term in (cross_entropy(logits, labels, over), hard_labels(logits, labels, over)):
        assert term.values.tolist() == pytest.approx([1.3132617, 0.0])
    (gradient,) = torch.autograd.grad(cross_entropy(logits, labels, over).values.sum(), logits)
    assert gradient.tolist() == [pytest.approx([-0.7310586, 0.7310586, 0]), [0, 0, 0]]


METHODS = [n for n, m in registry().methods.items() if "multiple-choice" in m.kinds]


@pytest.mark.parametrize("name", METHODS)
def test_methods_see_no_choice_that_a_row_lacks(name, tokenizer):
    trial = MethodTrial(registry().method(name), {}, "multiple-choice")
    batch = batch_of(tokenizer, [0, 1, 2, 3])
    counts = batch.counts()
    whole = trial.gradient([batch], counts)
    assert whole.isfinite().all()
    parts = [batch_of(tokenizer, rows) for rows in ([3, 1], [0], [2])]
    torch.testing.assert_close(trial.gradient(parts, counts), whole, rtol=1e-7, atol=1e-10)
