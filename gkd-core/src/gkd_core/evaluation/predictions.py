"""Predictions of models for each row of a split, in parquet files.

A folder has the rows once, in `rows.parquet`, and a file for each model, such as
`student.parquet`. Rows are known by the hash of their content, so that predictions of other runs,
for rows in another order, can be paired with them.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.atomic import draft
from gkd_core.contract.task import Split
from gkd_core.digest import of_value
from gkd_core.errors import DataError, PluginError

if TYPE_CHECKING:
    from gkd_core.kinds.task_kind import Evaluation, TaskKind

PREDICTIONS = "predictions"
"""Folder of a run with its predictions."""

STUDENT = "student"
"""Name of a run's student among its predictions; other names are those of teachers and baseline."""

ROWS = "rows"
"""Name of the file with the rows, which no model can have."""

KEY = b"gkd"
"""Key of what a file says about itself, in the metadata of its schema."""

UNHASHED = ("labels", "group", "byte_offsets", "chat", "source", "context")
"""Fields of a `Split` that are not what a model reads."""


@dataclass(frozen=True)
class About:
    """The task that predictions belong to.

    Attributes:
        split: `validation` or `test`.
        kind: Name of the kind of task.
        classes: Names of the classes, in the order of the scores.
        metric: Name of the main metric.
    """

    split: str
    kind: str
    classes: tuple[str, ...]
    metric: str


@dataclass(frozen=True)
class Predictions:
    """The predictions of models for the rows of a split.

    Attributes:
        about: What they are about.
        rows: A row of the split each: `row` (its number), `hash`, `text`, `pair`, `gold` and
            `group`; null where the split has none.
        models: What each model says of the same rows, by the name of its file: `hash`,
            `prediction`, and the columns of its `Evaluation`, such as `scores` and `loss`.
        names: The name of each model in the tables that gkd shows.
        tokenizers: The digest of what each language model's tokens are, if it is known: token ids
            and losses per token can be compared where it is the same.
    """

    about: About
    rows: pa.Table
    models: Mapping[str, pa.Table]
    names: Mapping[str, str]
    tokenizers: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write a file for the rows and one for each model.

        Raises:
            OSError: A file cannot be written.
        """
        _write(folder / f"{ROWS}.parquet", self.rows, {**asdict(self.about), "model": ""})
        for file, table in self.models.items():
            own = {"model": self.names[file], "tokenizer": self.tokenizers.get(file, "")}
            _write(folder / f"{file}.parquet", table, {**asdict(self.about), **own})

    @classmethod
    def read(cls, folder: Path) -> Predictions:
        """Read what `write` has written.

        Raises:
            DataError: A file is missing, or is none of predictions.
        """
        rows = ModelPredictions.read(folder / f"{ROWS}.parquet")
        paths = [path for path in sorted(folder.glob("*.parquet")) if path.stem != ROWS]
        found = {path.stem: ModelPredictions.read(path) for path in paths}
        return cls(
            rows.about,
            rows.table,
            {file: one.table for file, one in found.items()},
            {file: one.model for file, one in found.items()},
            {file: one.tokenizer for file, one in found.items()},
        )


@dataclass(frozen=True)
class ModelPredictions:
    """The file of a model.

    Attributes:
        table: What it says of each row.
        about: What the predictions are about.
        model: The name of the model; empty in the file of the rows.
        tokenizer: The digest of what its tokens are; empty if it is not known.
    """

    table: pa.Table
    about: About
    model: str
    tokenizer: str

    @classmethod
    def read(cls, path: Path) -> ModelPredictions:
        """Read a file.

        Raises:
            DataError: It is missing or damaged, or has no predictions.
        """
        try:
            table = pq.read_table(path)
            said = json.loads(table.schema.metadata[KEY])
            known = {f.name: said[f.name] for f in fields(About)}
            about = About(**known | {"classes": tuple(said["classes"])})
            table["hash"]
            return cls(table, about, said["model"], said.get("tokenizer", ""))
        except (OSError, pa.ArrowException, TypeError, KeyError, ValueError) as error:
            raise DataError(
                f"{path} is not a file of predictions ({error}); name a run, or a folder that gkd "
                "eval --output has written"
            ) from error


@dataclass(frozen=True)
class Pairing:
    """Rows that two sides have in common.

    Attributes:
        ours: Numbers of the paired rows on our side, int64 `[N]`, ascending.
        theirs: Numbers of the same rows on their side, int64 `[N]`.
        only_ours: Number of rows that only our side has.
        only_theirs: Number of rows that only their side has.
    """

    ours: NDArray[np.int64]
    theirs: NDArray[np.int64]
    only_ours: int
    only_theirs: int

    def __len__(self) -> int:
        return len(self.ours)

    def __str__(self) -> str:
        alone = {"the first": self.only_ours, "the second": self.only_theirs}
        said = [f"{count:,} only in {side}" for side, count in alone.items() if count]
        return ", ".join([f"{len(self):,} rows in both", *said])


def pair_rows(ours: Iterable[str], theirs: Iterable[str]) -> Pairing:
    """Pair rows of the same content, in whatever order; repeated ones in their order.

    Args:
        ours: The hash of each row of one side.
        theirs: The hash of each row of the other.
    """
    waiting: defaultdict[str, deque[int]] = defaultdict(deque)
    count = 0
    for count, found in enumerate(theirs, start=1):
        waiting[found].append(count - 1)
    pairs, alone = [], 0
    for number, found in enumerate(ours):
        if waiting[found]:
            pairs.append((number, waiting[found].popleft()))
        else:
            alone += 1
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return Pairing(both[:, 0], both[:, 1], alone, count - len(pairs))


def row_hashes(split: Split) -> list[str]:
    """Return a hash of the content of each row: of all that a model reads, without labels.

    Args:
        split: The rows.
    """
    content = _content(split)
    return [
        of_value(dict(zip(content, row, strict=True)))
        for row in zip(*content.values(), strict=True)
    ]


def digest_of_rows(hashes: Sequence[str]) -> str:
    """Return a digest of the content of rows, in whatever order.

    Args:
        hashes: Their hashes.
    """
    return of_value(sorted(hashes))


def rows_table(split: Split, kind: TaskKind, classes: Sequence[str]) -> pa.Table:
    """Return the rows of a split as a table.

    Args:
        split: The rows, with labels unless they are unknown.
        kind: The kind of task.
        classes: The task's classes.
    """
    gold = split.target if split.labels is None else kind.shown(split.labels, classes)
    read = {name: column for name, column in _content(split).items() if name != "target"}
    content = {"text": split.text, "pair": split.pair, **read, "gold": gold, "group": split.group}
    return _table({"row": range(len(split)), "hash": row_hashes(split), **content})


def model_table(
    evaluation: Evaluation, rows: pa.Table, kind: TaskKind, classes: Sequence[str]
) -> pa.Table:
    """Return a model's predictions for each row as a table.

    Args:
        evaluation: Its evaluation of the rows.
        rows: The rows, from `rows_table`.
        kind: The kind of task.
        classes: The task's classes.

    Raises:
        PluginError: The kind of task has not one value per row.
    """
    columns: dict[str, Any] = {"hash": rows["hash"]}
    if evaluation.predictions is not None:
        columns["prediction"] = kind.shown(evaluation.predictions, classes)
    columns |= evaluation.columns
    for name, column in columns.items():
        if len(column) != len(rows):
            raise PluginError(
                f"the kind of task '{kind}' gives {len(column)} values in the column {name!r} for "
                f"{len(rows)} rows; `summarize` must return one for each row of the split"
            )
    return _table(columns)


def file_names(models: Iterable[str]) -> list[str]:
    """Return a name for the file of each model, all different.

    Args:
        models: Short names, such as `teacher`.
    """
    taken = [ROWS]
    for model in models:
        numbered = (f"{model}-{number}" for number in range(2, len(taken) + 3))
        taken.append(next(name for name in (model, *numbered) if name not in taken))
    return taken[1:]


def _content(split: Split) -> dict[str, Sequence[Any]]:
    """Return the values that a model reads of each row, by the field of the split."""
    found = {f.name: getattr(split, f.name) for f in fields(Split) if f.name not in UNHASHED}
    return {name: column for name, column in found.items() if column is not None}


def _table(columns: Mapping[str, Any]) -> pa.Table:
    size = len(next(iter(columns.values())))
    return pa.table({n: pa.nulls(size) if c is None else _array(c) for n, c in columns.items()})


def _array(column: Any) -> Any:
    """Return a column of a table; a row of a matrix becomes a list."""
    if not isinstance(column, Tensor):
        return column if isinstance(column, pa.ChunkedArray) else _values(column)
    flat = pa.array(column.flatten().numpy())
    if column.dim() == 1:
        return flat
    ends = np.arange(len(column) + 1, dtype=np.int32) * column.shape[1]
    return pa.ListArray.from_arrays(ends, flat)


def _values(column: Sequence[Any]) -> Any:
    """Return values as a column; those of different shapes, such as messages, as JSON."""
    try:
        return pa.array(column)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([json.dumps(value) for value in column])


def _write(path: Path, table: pa.Table, said: Mapping[str, Any]) -> None:
    """Write a table with what it says about itself."""
    with draft(path) as aside:
        pq.write_table(table.replace_schema_metadata({KEY: json.dumps(said)}), aside)
