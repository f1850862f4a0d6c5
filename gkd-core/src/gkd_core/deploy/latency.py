"""The latency of a model for one sample, as a user would experience it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from gkd_core.contract.batch import Batch

ROUNDS = 5
ENOUGH = 1.0
"""Seconds after which no further round begins: slow models are timed precisely enough by one."""


def latencies(models: Sequence[PreTrainedModel], samples: Sequence[Sequence[Batch]]) -> list[float]:
    """Return each model's median latency for one sample, in milliseconds.

    The models alternate, so that changes in the speed of the machine affect them equally. Every
    model sees every sample at least once.

    Args:
        models: The models, on the device of the samples, in eval mode.
        samples: For each model, batches of one sample each, of the same rows.
    """
    times: list[list[float]] = [[] for _ in models]
    with torch.no_grad():
        for model, own in zip(models, samples, strict=True):
            model(**own[0].inputs)
        began = time.perf_counter()
        for _ in range(ROUNDS):
            for row in zip(*samples, strict=True):
                for model, sample, taken in zip(models, row, times, strict=True):
                    taken.append(_time(model, sample))
            if time.perf_counter() - began > ENOUGH:
                break
    return [1000 * statistics.median(taken) for taken in times]


def _time(model: PreTrainedModel, sample: Batch) -> float:
    device = sample.rows.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    model(**sample.inputs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
