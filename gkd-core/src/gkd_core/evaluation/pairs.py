"""Two models on the same rows: how much they agree, how sure they are, and which is better."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import log_softmax

from gkd_core.evaluation import divergence
from gkd_core.evaluation.statistics import (
    RESAMPLES,
    McNemar,
    SampleEstimate,
    bootstrap,
    mcnemar,
    paired_bootstrap,
)
from gkd_core.evaluation.top_tokens import COLUMN

if TYPE_CHECKING:
    from gkd_core.evaluation.predictions import Predictions
    from gkd_core.evaluation.statistics import Statistic
    from gkd_core.kinds.task_kind import TaskKind

BINS = 15
"""Bins of the calibration error (Guo et al., ICML 2017)."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Predictions that are about equally sure.

    Attributes:
        low: Lowest confidence, exclusive.
        high: Highest confidence, inclusive.
        count: Number of predictions.
        confidence: Their mean confidence; 0 without any.
        accuracy: Share of them that are right; 0 without any.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Whether a model is as often right as it is sure.

    Attributes:
        error: The expected calibration error: the mean over all predictions of the distance of
            confidence and accuracy in their bin.
        bins: The bins of equal width.
    """

    error: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class ModelPair:
    """A model against another on the same rows.

    Attributes:
        model: Name of the model.
        against: Name of the other.
        rows: Number of rows.
        metric: Name of the main metric.
        difference: The metric of the model minus that of the other, with a paired bootstrap
            interval; None if it cannot be computed for a part of the rows.
        agreement: Share of the rows, or of the tokens of a language model, with the same answer.
        kl: Mean Kullback-Leibler divergence of the model's predictive distribution from that of the
            other, in nats; None if they are not known.
        calibration: Calibration of both, by name; empty if it is not defined.
        mcnemar: McNemar's exact test; None if no prediction is simply right or wrong. The first is
            the model.
    """

    model: str
    against: str
    rows: int
    metric: str
    difference: SampleEstimate | None
    agreement: float | None
    kl: float | None
    calibration: dict[str, Calibration]
    mcnemar: McNemar | None


def compare_pair(
    predictions: Predictions,
    files: tuple[str, str],
    kind: TaskKind,
    measures: tuple[Statistic, Statistic] | None,
    resamples: int = RESAMPLES,
) -> ModelPair:
    """Compare two models by what they say of each row.

    Args:
        predictions: The predictions of both.
        files: Names of the files of the model and of the other.
        kind: The kind of task.
        measures: The main metric of each for some of the rows; None if it is not known.
        resamples: Number of bootstrap samples.
    """
    rows, classes = predictions.rows, predictions.about.classes
    tables = [predictions.models[file] for file in files]
    names = [predictions.names[file] for file in files]
    scores = [item_logits(table, kind) for table in tables]
    labeled = rows["gold"].null_count == 0
    truths = _truths(rows["gold"].to_pylist(), classes, kind) if labeled else None
    known = [predictions.tokenizers.get(file, "") for file in files]
    comparable = len({*known}) == 1
    return ModelPair(
        model=names[0],
        against=names[1],
        rows=len(rows),
        metric=predictions.about.metric,
        # A loss per token of one tokenizer says nothing about one of another.
        difference=row_difference(measures if comparable else None, rows, resamples),
        agreement=_same_tokens(tables, comparable) if kind.is_lm else _agreement(tables, kind),
        kl=_kl(*scores) if kind.keeps_scores else _measured_kl(*tables),
        calibration=_calibration(names, scores, truths),
        mcnemar=_mcnemar(tables, rows, kind) if labeled else None,
    )


def row_difference(
    measures: tuple[Statistic, Statistic] | None, rows: pa.Table, resamples: int = RESAMPLES
) -> SampleEstimate | None:
    """Return the metric of a model minus that of another, with a paired bootstrap interval.

    Args:
        measures: The metric of each for some of the rows; None if it is not known.
        rows: The rows, whose groups are drawn together.
        resamples: Number of bootstrap samples.
    """
    if measures is None:
        return None
    return paired_bootstrap(*measures, len(rows), groups=_groups(rows), resamples=resamples)


def row_estimate(measure: Statistic, rows: pa.Table) -> SampleEstimate:
    """Return the metric of a model with a bootstrap interval.

    Args:
        measure: The metric for some of the rows.
        rows: The rows, whose groups are drawn together.
    """
    return bootstrap(measure, len(rows), groups=_groups(rows))


def _groups(rows: pa.Table) -> list[Hashable] | None:
    """Return the group of each row; None if they have none."""
    return rows["group"].to_pylist() if rows["group"].null_count < len(rows) else None


def item_logits(table: pa.Table, kind: TaskKind) -> list[Floats] | None:
    """Return the logits of the items of each row, `[items, C]`; None if it has no distribution.

    Args:
        table: What a model says of each row.
        kind: The kind of task.
    """
    if "scores" not in table.column_names or kind.output in ("value", "vector"):
        return None
    rows = table["scores"].to_pylist()
    if kind.output == "binary":  # a sigmoid is a softmax over 0 and the logit
        return [np.array([[0.0, score] for score in row]) for row in rows]
    # A row without items, such as a sentence of which no word was read, has the width of others.
    width = max((np.shape(row)[-1] for row in rows if row), default=0)
    return [np.array(row, np.float64).reshape(-1, width) for row in rows]


def measured_divergences(model: pa.Table, against: pa.Table) -> Floats | None:
    """Return the divergence of each row that was measured while both models read it.

    Args:
        model: What a model says of each row.
        against: What the other says.

    Returns:
        In language modeling the mean over the tokens of each row; None if the model was not
        measured against the other, from which nothing diverges less than itself.
    """
    if any(divergence.COLUMN not in table.column_names for table in (model, against)):
        return None
    mine, theirs = (table[divergence.COLUMN].to_numpy() for table in (model, against))
    if np.any(theirs):
        return None
    means: Floats = mine / np.maximum(_item_counts(model), 1)
    return means


def mean_kl(reference: Floats, model: Floats) -> float:
    """Return the mean Kullback-Leibler divergence of distributions from those of a reference.

    Args:
        reference: Logits `[N, C]`.
        model: Logits `[N, C]`.
    """
    p, q = log_softmax(reference, -1), log_softmax(model, -1)
    apart = np.subtract(p, q, out=np.zeros_like(p), where=np.isfinite(p))
    return float((np.exp(p) * apart).sum(-1).mean())


def calibrate(logits: Floats, truths: NDArray[np.int64], bins: int = BINS) -> Calibration:
    """Return the expected calibration error of predictions.

    Args:
        logits: `[N, C]`.
        truths: The right class of each, int64 `[N]`.
        bins: Number of bins of equal width.
    """
    sure = np.exp(log_softmax(logits, -1)).max(-1)
    right = logits.argmax(-1) == truths
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    found = tuple(_bin(number, bins, sure, right, place == number) for number in range(bins))
    error = sum(one.count * abs(one.confidence - one.accuracy) for one in found)
    return Calibration(error / max(len(sure), 1), found)


def _bin(
    number: int, bins: int, sure: Floats, right: NDArray[np.bool_], inside: NDArray[np.bool_]
) -> Bin:
    count = int(inside.sum())
    means = [float(x[inside].mean()) if count else 0.0 for x in (sure, right)]
    return Bin(number / bins, (number + 1) / bins, count, *means)


def _truths(
    gold: Iterable[Any], classes: Sequence[str], kind: TaskKind
) -> list[NDArray[np.int64]] | None:
    """Return the right class of the items of each row; None if labels are no classes."""
    ids = {name: index for index, name in enumerate(classes)}
    if kind.output == "binary":
        return [np.isin(list(ids), row).astype(np.int64) for row in gold]
    rows = [row if isinstance(row, list) else [row] for row in gold]
    found = [[ids.get(value, value) for value in row] for row in rows]
    if not all(isinstance(value, int) for row in found for value in row):
        return None
    return [np.array(row, np.int64) for row in found]


def _joined(*columns: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return the items of all rows, one after the other, that every column has."""
    counts = [min(map(len, row)) for row in zip(*columns, strict=True)]
    return [
        np.concatenate([row[:count] for row, count in zip(column, counts, strict=True)])
        for column in columns
    ]


def _kl(model: list[Floats] | None, against: list[Floats] | None) -> float | None:
    if model is None or against is None:
        return None
    return mean_kl(*_joined(against, model))


def _measured_kl(model: pa.Table, against: pa.Table) -> float | None:
    found = measured_divergences(model, against)
    if found is None:
        return None
    counts = _item_counts(model)
    return float(found @ counts) / max(int(counts.sum()), 1)


def _item_counts(table: pa.Table) -> NDArray[np.int64]:
    """Return over how many items the divergence of each row is a sum."""
    if "tokens" in table.column_names:
        return np.asarray(table["tokens"].to_numpy())
    return np.ones(len(table), np.int64)


def _calibration(
    names: Sequence[str],
    scores: Sequence[list[Floats] | None],
    truths: list[NDArray[np.int64]] | None,
) -> dict[str, Calibration]:
    if truths is None:
        return {}
    found = {}
    for name, own in zip(names, scores, strict=True):
        if own is not None:
            logits, right = _joined(own, truths)
            found[name] = calibrate(logits, right)
    return found


def _agreement(tables: Sequence[pa.Table], kind: TaskKind) -> float | None:
    mine, theirs = tables
    if "prediction" not in mine.column_names or kind.output in ("value", "vector"):
        return None
    answers = zip(mine["prediction"].to_pylist(), theirs["prediction"].to_pylist(), strict=True)
    return sum(bool(one == other) for one, other in answers) / max(len(mine), 1)


def _same_tokens(tables: Sequence[pa.Table], comparable: bool) -> float | None:
    """Return the share of the positions with the same likeliest token; None if it is not known."""
    mine, theirs = tables
    if comparable and all(COLUMN in table.column_names for table in tables):
        own, other = (pc.list_flatten(table[COLUMN]).to_numpy() for table in tables)
        return float((own == other).mean()) if len(own) == len(other) > 0 else None
    if "same_top1" in mine.column_names and _is_judge(theirs):
        same, tokens = (int(np.sum(mine[name].to_numpy())) for name in ("same_top1", "tokens"))
        return same / max(tokens, 1)
    return None


def _is_judge(table: pa.Table) -> bool:
    """Return whether a model is the one with which the likeliest tokens of others were compared."""
    return "same_top1" in table.column_names and table["same_top1"].equals(table["tokens"])


def _mcnemar(tables: Sequence[pa.Table], rows: pa.Table, kind: TaskKind) -> McNemar | None:
    if any("prediction" not in table.column_names for table in tables):
        return None
    gold = rows["gold"].to_pylist()
    one, other = (kind.right(table["prediction"].to_pylist(), gold) for table in tables)
    return None if one is None or other is None else mcnemar(one, other)
