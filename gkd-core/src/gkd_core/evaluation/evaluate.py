"""Predictions of a model on a split, and the metrics computed from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gkd_core.contract.batch import Batch
from gkd_core.data.collate import Collator
from gkd_core.data.encode import Encoded
from gkd_core.data.loader import evaluation_batches
from gkd_core.distributed.data_parallel import collect
from gkd_core.kinds.kind import Kind
from gkd_core.losses import Logits, cross_entropy

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Metric:
    """The main metric of a task.

    Attributes:
        name: Key in the metrics.
        higher_is_better: Whether larger values are better.
    """

    name: str
    higher_is_better: bool

    def better(self, new: float, old: float | None) -> bool:
        """Return whether `new` beats `old`."""
        if old is None:
            return True
        return new > old if self.higher_is_better else new < old

    def share(self, student: float, teacher: float) -> float:
        """Return the share of the teacher's quality that the student keeps; 1 is equal."""
        kept, whole = (student, teacher) if self.higher_is_better else (teacher, student)
        return kept / whole if whole else math.nan


MAIN_METRIC: Mapping[Kind, Metric] = {
    "classification": Metric("accuracy", True),
    "regression": Metric("pearson", True),
    "masked-lm": Metric("perplexity", False),
    "causal-lm": Metric("perplexity", False),
}


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model on a split.

    Attributes:
        metrics: Values by name; `loss` is always present.
        predictions: Class ids or values `[rows]` in the order of the split; None for LM kinds.
    """

    metrics: Mapping[str, float]
    predictions: Tensor | None


Predict: TypeAlias = Callable[[Batch], Logits]
"""Returns the logits of a batch: `[B, C]`, or `[B, S, V]` in language modeling."""


def evaluate(
    model: PreTrainedModel,
    split: Encoded,
    collator: Collator,
    kind: Kind,
    device: torch.device,
    predict: Predict | None = None,
) -> Evaluation:
    """Evaluate a model in eval mode; its mode and all random states stay as they were.

    Every rank evaluates its share of the batches, and all return the same result.

    Args:
        model: The model.
        split: Rows with labels.
        collator: Makes batches from the rows.
        kind: The kind of task.
        device: Device of the model.
        predict: Computes the logits of a batch. Default: calls the model.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            run = _evaluate_lm if kind in ("masked-lm", "causal-lm") else _evaluate_rows
            return run(predict or partial(_call, model), split, collator, device)
    finally:
        model.train(was_training)


def _call(model: PreTrainedModel, batch: Batch) -> Tensor:
    logits: Tensor = model(**batch.inputs).logits
    return logits


def _evaluate_lm(
    predict: Predict, split: Encoded, collator: Collator, device: torch.device
) -> Evaluation:
    parts: list[tuple[float, int]] = []
    for cpu_batch in evaluation_batches(split, collator, EVALUATION_BATCH):
        batch = cpu_batch.to(device)
        if batch.labels is None:
            raise ValueError("a language-model batch has no labels")
        logits = predict(batch)
        if batch.counted:
            losses = cross_entropy(logits, batch.labels, batch.targets).values
            parts.append((float(losses.sum()), batch.targets.count))
    parts = collect(parts)
    loss = sum(total for total, _ in parts) / max(sum(count for _, count in parts), 1)
    # `math.exp` raises OverflowError above 709.
    return Evaluation({"loss": loss, "perplexity": math.exp(min(loss, 700.0))}, None)


def _evaluate_rows(
    predict: Predict, split: Encoded, collator: Collator, device: torch.device
) -> Evaluation:
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in evaluation_batches(split, collator, EVALUATION_BATCH):
        logits = predict(batch.to(device))
        assert isinstance(logits, Tensor), "only heads over a vocabulary defer their logits"
        if batch.labels is None:
            raise ValueError("an evaluation batch has no labels")
        if batch.counted:
            parts.append((logits.float().cpu(), batch.labels, batch.rows))
    logits, labels, rows = map(torch.cat, zip(*collect(parts), strict=True))
    order = rows.argsort()
    return _score(logits[order], labels[order])


def _score(logits: Tensor, labels: Tensor) -> Evaluation:
    if labels.is_floating_point():
        values = logits.squeeze(-1)
        return Evaluation(_regression(values, labels), values)
    predictions = logits.argmax(-1)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    metrics = {
        "loss": float(loss),
        "accuracy": float((predictions == labels).double().mean()),
        "macro_f1": macro_f1(predictions, labels),
    }
    return Evaluation(metrics, predictions)


def _regression(values: Tensor, labels: Tensor) -> dict[str, float]:
    pairs: Sequence[tuple[str, Callable[[Tensor], Tensor]]] = (
        ("pearson", lambda x: x),
        ("spearman", ranks),
    )
    metrics = {"loss": float((values - labels).square().mean())}
    for name, prepare in pairs:
        metrics[name] = correlation(prepare(values.double()), prepare(labels.double()))
    return metrics


def macro_f1(predictions: Tensor, labels: Tensor) -> float:
    """Return the mean of the F1 scores of the classes that occur."""
    scores = []
    for label in set(torch.cat([predictions, labels]).tolist()):
        hit = ((predictions == label) & (labels == label)).sum()
        scores.append(2 * hit / ((predictions == label).sum() + (labels == label).sum()))
    return float(torch.stack(scores).double().mean())


def correlation(x: Tensor, y: Tensor) -> float:
    """Return Pearson's correlation; 0 where one side does not vary."""
    x, y = x - x.mean(), y - y.mean()
    norm = x.norm() * y.norm()
    return float(x @ y / norm) if norm > 0 else 0.0


def ranks(x: Tensor) -> Tensor:
    """Return the rank of each value; equal values share their mean rank."""
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    mean: Tensor = last - (counts.double() - 1) / 2
    return mean[inverse]
