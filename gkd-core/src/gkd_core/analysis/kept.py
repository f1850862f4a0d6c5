"""A model against predictions that another has left, on the rows that both know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from gkd_core.data.holdout import take
from gkd_core.errors import DataError
from gkd_core.evaluation.pairs import compare_pair
from gkd_core.evaluation.predictions import (
    ROWS,
    STUDENT,
    ModelPredictions,
    Pairing,
    Predictions,
    pair_rows,
)
from gkd_core.kinds.task_kind import Evaluation
from gkd_core.training.row_measure import row_measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gkd_core.analysis.comparison import Compared
    from gkd_core.evaluation.pairs import ModelPair
    from gkd_core.evaluation.statistics import Statistic
    from gkd_core.kinds.task_kind import TaskKind
    from gkd_core.training.stage_spec import StageSpec

SUFFIX = ".parquet"
OWN, OTHER = "own", "other"

COMPARED = ("prediction", "scores", "nll", "tokens")
"""Columns that are compared, if a kind of task has them."""


@dataclass(frozen=True)
class KeptPredictions:
    """The predictions of a model, from a file.

    Attributes:
        path: The file.
        found: What is in it.
    """

    path: Path
    found: ModelPredictions

    @property
    def name(self) -> str:
        """The name of the model, which may be that of the other as well."""
        return f"{self.found.model} ({self.path})"


def find_kept(name: str) -> KeptPredictions | None:
    """Return the predictions that a name on the command line stands for; None if it is a model.

    It names a file, or a folder with the predictions of a student or of a single model.

    Args:
        name: As it was typed.

    Raises:
        DataError: The file is damaged, or the folder has several models and no student.
    """
    path = Path(name)
    if path.is_dir() and (path / f"{ROWS}{SUFFIX}").is_file():
        path = _only_file(path)
    elif path.suffix != SUFFIX or not path.is_file():
        return None
    found = ModelPredictions.read(path)
    if not found.model:
        raise DataError(
            f"{path} has the rows, not the predictions of a model; name the file of a model"
        )
    return KeptPredictions(path, found)


def compare_with_kept(
    compared: Compared, spec: StageSpec, kept: KeptPredictions
) -> tuple[ModelPair, Pairing]:
    """Compare a model with kept predictions on the rows of both; return which these are.

    Args:
        compared: The evaluation of the model.
        spec: The stage with the rows.
        kept: The predictions of the other.

    Raises:
        DataError: They are about something else, or about none of the rows.
    """
    predictions = compared.predictions
    (file, own) = next(iter(predictions.models.items()))
    _check_about(kept, predictions)
    _check_columns(kept, own)
    pairing = pair_rows(own["hash"].to_pylist(), kept.found.table["hash"].to_pylist())
    if not len(pairing):
        raise DataError(
            f"{kept.path} has predictions for other rows: none of the {len(own):,} rows of "
            f"{spec.data.source} is among its {pairing.only_theirs:,}"
        )
    classes = predictions.about.classes
    other = _in_order(kept.found.table.take(pairing.theirs), kept.found.about.classes, classes)
    both = replace(
        predictions,
        rows=predictions.rows.take(pairing.ours),
        models={OWN: own.take(pairing.ours), OTHER: other},
        names={OWN: predictions.names[file], OTHER: kept.name},
        tokenizers={OWN: predictions.tokenizers.get(file, ""), OTHER: kept.found.tokenizer},
    )
    _, judged = spec.judged
    split = take(judged, pairing.ours.tolist())
    theirs = row_measure(spec, split, _evaluation(other, spec.kind, classes))
    mine = compared.measures.get(file)
    measures = None
    if mine is not None and theirs is not None:
        measures = (_among(pairing.ours, mine), theirs)
    return compare_pair(both, (OWN, OTHER), spec.kind, measures), pairing


def _among(numbers: NDArray[np.int64], measure: Statistic) -> Statistic:
    """Return a function that measures some of the rows with the given numbers."""
    return lambda rows: measure(numbers[rows])


def _only_file(folder: Path) -> Path:
    """Return the file of the student in a folder, or of the only model."""
    paths = [path for path in sorted(folder.glob(f"*{SUFFIX}")) if path.stem != ROWS]
    student = folder / f"{STUDENT}{SUFFIX}"
    if student in paths:
        return student
    if len(paths) != 1:
        known = ", ".join(path.name for path in paths) or "no model"
        raise DataError(f"{folder} has predictions of {known}; name one of the files")
    return paths[0]


def _check_about(kept: KeptPredictions, predictions: Predictions) -> None:
    """Reject predictions of another kind of task, or of other classes."""
    theirs, ours = kept.found.about, predictions.about
    for what, one, other in (
        ("the kind of task", theirs.kind, ours.kind),
        ("the metric", theirs.metric, ours.metric),
        ("the classes", sorted(theirs.classes), sorted(ours.classes)),
    ):
        if one != other:
            raise DataError(f"{what} of {kept.path} is {one}, but that of the model is {other}")


def _check_columns(kept: KeptPredictions, own: pa.Table) -> None:
    """Reject predictions that have not the form of the model's."""
    other, classes = kept.found.table, kept.found.about.classes
    for name in COMPARED:
        if name not in own.column_names:
            continue
        there = other[name].type if name in other.column_names else "missing"
        if there != own[name].type or _widths(other[name]) != _widths(own[name]):
            raise DataError(
                f"the column {name!r} of {kept.path} is not like that of the model "
                f"({there} instead of {own[name].type}, or of another width)"
            )
    if "prediction" in other.column_names and classes:
        unknown = {v for v in other["prediction"].to_pylist() if isinstance(v, str)} - {*classes}
        if unknown:
            raise DataError(
                f"{kept.path} predicts {min(unknown)!r}, but the classes are {', '.join(classes)}"
            )


def _widths(column: pa.ChunkedArray) -> set[int]:
    """Return the lengths of the lists in a column of scores; of nested ones, the innermost."""
    while pa.types.is_list(column.type) and pa.types.is_list(column.type.value_type):
        column = pc.list_flatten(column)
    return set(pc.list_value_length(column).to_pylist()) if pa.types.is_list(column.type) else set()


def _in_order(table: pa.Table, given: Sequence[str], wanted: Sequence[str]) -> pa.Table:
    """Return predictions with the scores of the classes in another order."""
    if given == wanted or "scores" not in table.column_names:
        return table
    order = [given.index(name) for name in wanted]
    scores = [_ordered(row, order) for row in table["scores"].to_pylist()]
    place = table.column_names.index("scores")
    return table.set_column(place, "scores", pa.array(scores))


def _ordered(row: list[Any], order: Sequence[int]) -> list[Any]:
    nested = bool(row) and isinstance(row[0], list)
    return [_ordered(item, order) for item in row] if nested else [row[place] for place in order]


def _evaluation(table: pa.Table, kind: TaskKind, classes: Sequence[str]) -> Evaluation:
    """Return an evaluation with what predictions say, from which metrics can be computed."""
    columns = {name: _column(table[name].to_pylist()) for name in table.column_names}
    predictions = columns.pop("prediction", None)
    if predictions is not None:
        predictions = _predictions(table["prediction"].to_pylist(), kind, classes)
    return Evaluation({}, predictions, columns)


def _column(values: list[Any]) -> Tensor | np.ndarray[Any, Any] | list[Any]:
    """Return the scores of rows as a matrix and numbers as an array, if all rows have as many."""
    if all(isinstance(value, (int, float)) for value in values):
        return np.array(values)
    if all(isinstance(value, list) for value in values):
        flat = {len(value) for value in values}
        if len(flat) == 1 and all(isinstance(item, float) for value in values for item in value):
            return torch.tensor(values)
    return values


def _predictions(
    values: Iterable[Any], kind: TaskKind, classes: Sequence[str]
) -> Tensor | list[Any]:
    """Return predictions as the kind of task has them, given as `shown` returns them."""
    if kind.output == "binary":
        return torch.tensor([[int(name in row) for name in classes] for row in values])
    ids = {name: number for number, name in enumerate(classes)}
    found = [value if isinstance(value, list) else ids.get(value, value) for value in values]
    numbers = all(isinstance(value, (int, float)) for value in found)
    return torch.tensor(found) if numbers else found
