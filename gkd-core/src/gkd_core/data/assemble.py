"""Build a `TaskData` from tables: find columns, read labels, hold out validation rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from json.encoder import encode_basestring_ascii
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gkd_core import digest
from gkd_core.config.schema import TaskConfig
from gkd_core.contract.task import Fit, Split, TaskData
from gkd_core.data.classes import refuse_one_class
from gkd_core.data.columns import check_label, column_of_names, refuse_unlabeled
from gkd_core.data.holdout import hold_out
from gkd_core.data.spooled_table import spooled
from gkd_core.data.table import Table
from gkd_core.errors import DataError
from gkd_core.plugins import ask

if TYPE_CHECKING:
    from gkd_core.kinds.task_kind import ReadRows, TaskKind

CHUNK = 100
"""Values of a column that are hashed at once."""


@dataclass(frozen=True)
class Tables:
    """The tables of a task; without `validation`, a share of `train` is held out."""

    train: Table
    validation: Table | None = None
    test: Table | None = None

    def by_name(self) -> dict[str, Table]:
        """Return the tables that there are, by the name of their split."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: table for name, table in found.items() if table is not None}


def assemble(
    tables: Tables,
    config: TaskConfig,
    kind: TaskKind,
    seed: int,
    source: str,
    known: tuple[str, ...] = (),
) -> TaskData:
    """Check the tables and build the task.

    Args:
        tables: The rows as read.
        config: Column names and share to hold out.
        kind: TaskKind of the task.
        seed: Seed for the held-out share.
        source: User-facing name of the data.
        known: Class names of the model at the start; rows need not show all of them.

    Raises:
        DataError: A column, row or label is invalid.
    """
    named = {name: replace(table, known=known) for name, table in tables.by_name().items()}
    rows = _read(named, config, kind)
    splits = _with_context(_with_sources(rows.splits, named, config), named, config)
    if "validation" not in splits:
        labels = splits["train"].labels
        if labels is not None:
            refuse_one_class(labels, rows.classes, kind, tables.train.source)
        splits["train"], splits["validation"] = hold_out(
            splits["train"], config.validation_share, seed, tables.train.source
        )
    return TaskData(
        kind=kind.name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        classes=rows.classes,
        rows_hash=hash_rows(kind.name, rows.classes, splits),
        source=source,
    )


def _read(tables: Mapping[str, Table], config: TaskConfig, kind: TaskKind) -> ReadRows:
    try:
        tables["train"].check_filled()
        check_label(list(tables.values()), config)
        return kind.read(tables, config)
    except DataError:
        # A column may be missing because the rows that have it could not be read.
        for table in tables.values():
            table.faults.check()
        raise


def _with_sources(
    splits: Mapping[str, Split], tables: Mapping[str, Table], config: TaskConfig
) -> dict[str, Split]:
    """Return the splits with the source of each row, if a column says it."""
    if config.source is None:
        return dict(splits)
    return {
        name: replace(split, source=_of_rows(split, tables[name], config.source, "source"))
        for name, split in splits.items()
    }


def _with_context(
    splits: Mapping[str, Split], tables: Mapping[str, Table], config: TaskConfig
) -> dict[str, Split]:
    """Return the splits, the training rows with their privileged context if a column has it."""
    if config.context is None:
        return dict(splits)
    train = splits["train"]
    context = _of_rows(train, tables["train"], config.context, "context")
    return {**splits, "train": replace(train, context=context)}


def _of_rows(split: Split, table: Table, column: str, setting: str) -> Sequence[str]:
    """Return the values of a column, one for each row that is read."""
    values = column_of_names(table, column, f"task.{setting}")
    if len(values) != len(split):
        raise DataError(
            f"{table.source} has {len(values)} rows, of which {len(split)} texts are read, so "
            f"task.{setting} = {column!r} does not say what belongs to each. Remove task.{setting}"
        )
    return values


def infer_kind(
    table: Table, config: TaskConfig, kinds: Mapping[str, TaskKind], model_kind: str | None
) -> TaskKind:
    """Return the kind of task that a training table fits best.

    Args:
        table: The table.
        config: Column names that the user gave.
        kinds: The kinds to choose from, by name.
        model_kind: Name of the kind that the model was made for; it decides where the table leaves
            the kind open.

    Raises:
        DataError: The rows have no labels, and there is no such model.
    """
    table.check_filled()
    fits = {name: ask(partial(kind.fit, table, config), Fit.NO) for name, kind in kinds.items()}
    best = max(fits, key=lambda name: fits[name])
    if model_kind is not None and fits[model_kind] and fits[best] < Fit.CERTAIN:
        best = model_kind
    if kinds[best].is_labeled(table, table, config):
        return kinds[best]
    if model_kind is None:
        refuse_unlabeled(table, config)
    return kinds[model_kind]


def without_labels(data: TaskData, kind: str) -> TaskData:
    """Return the rows of a task as plain text, with the same splits.

    Args:
        data: The task.
        kind: Name of a kind of language modeling.
    """
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    splits = {name: _plain_texts(split) for name, split in parts.items() if split is not None}
    return TaskData(
        kind=kind,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        classes=(),
        rows_hash=hash_rows(kind, (), splits),
        source=data.source,
    )


def _plain_texts(split: Split) -> Split:
    """Return the texts of rows; pairs have no meaning in language modeling, so both are rows."""
    if split.pair is None:
        return Split(split.text, source=split.source)
    return Split(spooled(chain(split.text, _second_texts(split))))


def _second_texts(split: Split) -> Iterator[str]:
    """Yield the second text of each row, or each of its choices."""
    for pair in split.pair or ():
        yield from [pair] if isinstance(pair, str) else pair


def hash_rows(kind: str, classes: Sequence[str], splits: Mapping[str, Split]) -> str:
    """Return a hash of the kind, the classes and all rows."""
    return digest.of_bytes(_row_bytes(kind, classes, splits))


def _row_bytes(kind: str, classes: Sequence[str], splits: Mapping[str, Split]) -> Iterator[bytes]:
    yield json.dumps([kind, list(classes)]).encode()
    for name, split in splits.items():
        yield json.dumps([name, len(split)]).encode()
        for column in (split.text, split.pair, split.labels):
            for texts in _json_texts(column or ()):
                yield "\n".join([*texts, ""]).encode()
        # Columns that came later do not change the hash of rows without them.
        names = ("group", "target", "spans", "tools", "source", "context")
        later = {name: getattr(split, name) for name in names}
        if split.chat:
            yield b"chat"
        for name, column in later.items():
            if column is not None:
                yield from _json_list(name, column)


def _json_list(name: str, column: Sequence[Any]) -> Iterator[bytes]:
    """Yield `[name, column]` in JSON, part by part."""
    yield f"[{TO_JSON(name)}, [".encode()
    for number, texts in enumerate(_json_texts(column)):
        yield ((", " if number else "") + ", ".join(texts)).encode()
    yield b"]]"


def _json_texts(column: Iterable[Any]) -> Iterator[Iterable[str]]:
    """Yield the JSON text of each value, part by part."""
    values = iter(column)
    while part := list(islice(values, CHUNK)):
        first, *others = set(map(type, part))
        yield map(TO_JSON if others else JSON_OF.get(first, TO_JSON), part)


def _plain(value: Any) -> Any:
    """Return a value from a plugin's rows, such as an array, in JSON-serializable form."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


TO_JSON = json.JSONEncoder(default=_plain).encode
"""`json.dumps` with one encoder for all values, of which there may be millions."""

JSON_OF: Mapping[type, Callable[[Any], str]] = MappingProxyType(
    {str: encode_basestring_ascii, int: str}
)
"""What writes values of one type as `TO_JSON` does, sooner."""
