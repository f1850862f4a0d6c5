"""Metrics of the kinds against those of scikit-learn, scipy and seqeval, on random predictions."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from sklearn import metrics

from gkd_core.kinds.token_classification import entity_scores
from gkd_core.plugins import registry

ROWS = 60
TAGS = ["O", *(f"{place}-{name}" for name in ("PER", "LOC") for place in "BI")]


def _measured(kind, logits, labels):
    kind = registry().kind(kind)
    predictions = kind.score(logits)
    return kind.measure(logits, predictions, labels), predictions


@pytest.mark.parametrize("seed", range(3))
def test_classes_are_measured_as_by_scikit_learn(seed):
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(ROWS, 4, generator=draw)
    labels = torch.randint(3, (ROWS,), generator=draw)  # the last class is never right
    found, predicted = _measured("classification", logits, labels)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    expected = metrics.f1_score(labels, predicted, average="macro")
    assert found["macro_f1"] == pytest.approx(expected)
    probabilities = logits.double().softmax(-1)
    expected = metrics.log_loss(labels, probabilities, labels=range(4))
    assert found["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_marks_are_measured_as_by_scikit_learn(seed):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(ROWS, 3, generator=draw)
    labels = torch.randint(2, (ROWS, 3), generator=draw).float()
    found, predicted = _measured("multi-label", logits, labels)
    for average in ("micro", "macro"):
        expected = metrics.f1_score(labels, predicted, average=average)
        assert found[f"{average}_f1"] == pytest.approx(expected)
    assert found["exact"] == pytest.approx(metrics.accuracy_score(labels, predicted))


@pytest.mark.parametrize("kind", ["regression", "similarity"])
def test_values_are_correlated_as_by_scipy(kind):
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (ROWS,), generator=draw) / 5  # with ties
    shape = (ROWS, 1) if kind == "regression" else (ROWS,)
    logits = labels.reshape(shape) + 0.5 * torch.randn(shape, generator=draw).round(decimals=1)
    found, predicted = _measured(kind, logits, labels)
    values = predicted.flatten()
    assert found["pearson"] == pytest.approx(stats.pearsonr(values, labels).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(values, labels).statistic)


@pytest.mark.parametrize("seed", range(10))
def test_entities_are_counted_as_by_seqeval(seed):
    peer = pytest.importorskip("seqeval.metrics")
    draw = torch.Generator().manual_seed(seed)
    tags = torch.randint(len(TAGS), (2, 8, 12), generator=draw)
    gold, predicted = ([[TAGS[tag] for tag in row] for row in side.tolist()] for side in tags)
    found = entity_scores(gold, predicted)
    for name in ("precision", "recall", "f1", "accuracy"):
        score = getattr(peer, f"{name}_score")
        assert found[name] == pytest.approx(score(gold, predicted)), name
