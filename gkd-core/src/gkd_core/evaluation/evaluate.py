"""Predictions of a model on a split, and the metrics computed from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gkd_core.contract.batch import Batch
from gkd_core.data.collate import Collator
from gkd_core.data.encode import Encoded
from gkd_core.data.loader import evaluation_batches
from gkd_core.distributed.data_parallel import collect
from gkd_core.kinds.task_kind import Evaluation, TaskKind
from gkd_core.losses.logits import ModelLogits

EVALUATION_BATCH = 64

Predict: TypeAlias = Callable[[Batch], ModelLogits]
"""Returns the logits of a batch: `[B, C]`, or `[B, S, V]` in language modeling."""


def evaluate(
    model: PreTrainedModel,
    split: Encoded,
    collator: Collator,
    kind: TaskKind,
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
            parts = _observe(predict or calling(model), split, collator, kind, device)
    finally:
        model.train(was_training)
    return kind.summarize(collect(parts), split)


def calling(model: PreTrainedModel) -> Predict:
    """Return a function that computes logits by calling a model."""

    def call(batch: Batch) -> Tensor:
        logits: Tensor = model(**batch.inputs).logits
        return logits

    return call


def _observe(
    predict: Predict, split: Encoded, collator: Collator, kind: TaskKind, device: torch.device
) -> list[Any]:
    """Return the values of this rank's batches that the kind of task keeps."""
    parts = []
    for cpu_batch in evaluation_batches(split, collator, EVALUATION_BATCH):
        batch = cpu_batch.to(device)
        logits = predict(batch)
        if batch.counted:
            parts.append(kind.observe(logits, batch))
    return parts
