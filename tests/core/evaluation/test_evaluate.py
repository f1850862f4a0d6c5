"""Metrics against values worked out by hand, and what an evaluation leaves untouched."""

from __future__ import annotations

import math

import pytest
import torch

from gkd_core.data.collate import EVALUATION_EPOCH
from gkd_core.evaluation import evaluate as module
from gkd_core.evaluation.evaluate import evaluate
from gkd_core.kinds.metrics import Metric, correlation, macro_f1, ranks
from gkd_core.plugins import registry
from gkd_core.training.assembly import build_stage


def _stage(prepare_run, tmp_path, *settings, **options):
    run = prepare_run(*settings, **options)
    return build_stage(run.last, run.registry, tmp_path / "stage", None)


def _evaluate(stage):
    return evaluate(
        stage.student.model, stage.validation, stage.collator, stage.kind, torch.device("cpu")
    )


def test_macro_f1_is_the_mean_over_the_classes():
    predictions = torch.tensor([0, 0, 1, 1, 2, 2])
    labels = torch.tensor([0, 1, 1, 1, 2, 0])
    # class 0: P 1/2, R 1/2; class 1: P 1, R 2/3; class 2: P 1/2, R 1
    assert macro_f1(predictions, labels) == pytest.approx((1 / 2 + 4 / 5 + 2 / 3) / 3)


def test_macro_f1_counts_a_class_that_is_never_predicted_as_zero():
    assert macro_f1(torch.tensor([0, 0]), torch.tensor([0, 1])) == pytest.approx((2 / 3 + 0) / 2)


def test_ranks_of_equal_values_are_shared():
    assert ranks(torch.tensor([10.0, 20.0, 10.0, 5.0])).tolist() == [2.5, 4.0, 2.5, 1.0]


def test_pearson_and_spearman():
    x, y = torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), torch.tensor([1.0, 3.0, 2.0, 4.0]).double()
    assert correlation(x, y) == pytest.approx(0.8)
    assert correlation(x, -y) == pytest.approx(-0.8)
    curved = x**3
    assert correlation(x, curved) == pytest.approx(0.9513, abs=1e-4)
    assert correlation(ranks(x), ranks(curved)) == pytest.approx(1)


def test_spearman_with_ties():
    x, y = torch.tensor([1.0, 2.0, 2.0, 3.0]).double(), torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    # ranks of x: 1, 2.5, 2.5, 4; covariance 4.5, variances 4.5 and 5
    assert correlation(ranks(x), ranks(y)) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_constant_predictions_have_no_correlation():
    assert correlation(torch.ones(4).double(), torch.arange(4).double()) == 0


@pytest.mark.parametrize(
    ("kind", "student", "teacher", "share"),
    [("classification", 0.45, 0.9, 0.5), ("masked-lm", 20.0, 10.0, 0.5)],
)
def test_share_of_the_teacher_follows_the_direction_of_the_metric(kind, student, teacher, share):
    metric = registry().kind(kind).metric
    assert metric.share(student, teacher) == pytest.approx(share)
    assert metric.better(teacher, student)
    assert not metric.better(student, teacher)
    assert not metric.better(teacher, teacher)
    assert metric.better(student, None)


def test_share_of_a_teacher_without_quality_is_undefined():
    assert math.isnan(Metric("accuracy", True).share(0.5, 0.0))


def test_accuracy_agrees_with_one_row_at_a_time(prepare_run, tmp_path, monkeypatch):
    stage = _stage(prepare_run, tmp_path, "method=soft")
    found = _evaluate(stage)
    model = stage.student.model.eval()
    logits, labels = [], []
    for row in range(len(stage.validation)):
        batch = stage.collator.collate(stage.validation, [row], 0)
        logits.append(model(**batch.inputs).logits[0].detach())
        labels.append(int(batch.labels))
    predictions = torch.stack(logits).argmax(-1)
    assert torch.equal(found.predictions, predictions)
    right = sum(int(p) == label for p, label in zip(predictions, labels, strict=True))
    assert found.metrics["accuracy"] == pytest.approx(right / 40)
    loss = torch.nn.functional.cross_entropy(torch.stack(logits), torch.tensor(labels))
    assert found.metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    monkeypatch.setattr(module, "EVALUATION_BATCH", 7)
    again = _evaluate(stage)
    assert again.metrics["loss"] == pytest.approx(found.metrics["loss"], rel=1e-5)


def test_perplexity_is_that_of_all_predicted_tokens(prepare_run, world, tmp_path, monkeypatch):
    corpus = [f"task.{split}={world / 'corpus.txt'}" for split in ("train", "validation", "test")]
    stage = _stage(prepare_run, tmp_path, "method=soft", *corpus, teachers=("lm-teacher",))
    found = _evaluate(stage)
    model = stage.student.model.eval()
    losses = []
    for row in range(len(stage.validation)):
        batch = stage.collator.collate(stage.validation, [row], EVALUATION_EPOCH)
        logits = model(**batch.inputs).logits.detach()
        chosen = batch.labels != -100
        losses += (
            -logits.log_softmax(-1)[chosen].gather(1, batch.labels[chosen][:, None])
        ).tolist()
    mean = sum(loss for (loss,) in losses) / len(losses)
    assert found.metrics["loss"] == pytest.approx(mean, rel=1e-5)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    assert found.predictions is None
    monkeypatch.setattr(module, "EVALUATION_BATCH", 5)
    assert _evaluate(stage).metrics["loss"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_mode_and_random_state_alone(prepare_run, tmp_path, training):
    stage = _stage(prepare_run, tmp_path, "method=soft")
    stage.student.model.train(training)
    state = torch.get_rng_state()
    first, second = _evaluate(stage), _evaluate(stage)
    assert stage.student.model.training is training
    assert torch.equal(torch.get_rng_state(), state)
    assert first.metrics == second.metrics
    assert all(p.grad is None for p in stage.student.model.parameters())
