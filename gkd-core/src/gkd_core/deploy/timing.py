"""The time that models take for batches of several sizes, measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gkd_core.deploy.candidate import Candidate
from gkd_core.errors import ConfigError, first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

WARMUP = 2
"""Rounds before those that count."""

LENGTHS = (32, 128)
"""Tokens of a row unless the user names others; models that read fewer are spared the longer."""


@dataclass(frozen=True)
class BatchShape:
    """A size of batch.

    Attributes:
        rows: Number of rows.
        length: Tokens of each.
    """

    rows: int
    length: int


@dataclass(frozen=True)
class ModelTiming:
    """A model at a size of batch.

    Attributes:
        name: The model.
        rows: Number of rows of a batch.
        length: Tokens of each.
        p50: Median milliseconds of a batch.
        p95: Milliseconds that 95% of the batches stay below.
        throughput: Rows per second, at the median.
        ratio: Median of the time over that of the first model in the same round.
    """

    name: str
    rows: int
    length: int
    p50: float
    p95: float
    throughput: float
    ratio: float


def default_lengths(candidates: Sequence[Candidate], say: Callable[[str], None]) -> list[int]:
    """Return the usual lengths that every model reads, or the longest; say what is left out."""
    shortest = min(candidates, key=lambda each: each.longest)
    fitting = [length for length in LENGTHS if length <= shortest.longest]
    for length in LENGTHS[len(fitting) :]:
        say(
            f"rows of {length} tokens are left out: {shortest.name} reads at most "
            f"{shortest.longest}"
        )
    return fitting or [shortest.longest]


def check_lengths(candidates: Sequence[Candidate], lengths: Sequence[int]) -> None:
    """Reject rows that are longer than a model reads, before anything is measured.

    Raises:
        ConfigError: They are.
    """
    longest = max(lengths)
    shortest = min(candidates, key=lambda each: each.longest)
    if longest > shortest.longest:
        raise ConfigError(
            f"{shortest.name} reads at most {shortest.longest} tokens, so rows of {longest} "
            f"cannot be measured; choose lengths up to {shortest.longest} with --length"
        )


def time_in_turn(
    candidates: Sequence[Candidate], shape: BatchShape, rounds: int
) -> list[ModelTiming]:
    """Return the time of each model for a size of batch; they read it one after the other.

    Args:
        candidates: The models; times are also given relative to the first.
        shape: The size of batch.
        rounds: How often each model reads the batch.

    Raises:
        ConfigError: A model cannot read it.
    """
    batches = [each.inputs(shape.rows, shape.length) for each in candidates]
    times = np.zeros((len(candidates), rounds))
    for number in range(-WARMUP, rounds):
        for place, (candidate, batch) in enumerate(zip(candidates, batches, strict=True)):
            taken = _milliseconds(candidate, batch, shape)
            if number >= 0:
                times[place, number] = taken
    return [
        _timing(candidate.name, shape, own, times[0])
        for candidate, own in zip(candidates, times, strict=True)
    ]


def _milliseconds(candidate: Candidate, batch: Mapping[str, Tensor], shape: BatchShape) -> float:
    start = time.perf_counter()
    try:
        candidate.run(batch)
    except Exception as error:  # onnxruntime and torch raise many types
        raise ConfigError(
            f"{candidate.name} cannot read {shape.rows} rows of {shape.length} tokens "
            f"({first_line(error)}); choose others with --batch and --length"
        ) from error
    return 1000 * (time.perf_counter() - start)


def _timing(
    name: str, shape: BatchShape, own: NDArray[np.float64], first: NDArray[np.float64]
) -> ModelTiming:
    """Summarize the milliseconds of a model in each round, next to those of the first model."""
    median = statistics.median(own)
    return ModelTiming(
        name,
        shape.rows,
        shape.length,
        p50=median,
        p95=float(np.percentile(own, 95)),
        throughput=1000 * shape.rows / median,
        ratio=float(np.median(own / first)),
    )
