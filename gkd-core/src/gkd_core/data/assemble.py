"""Build a `TaskData` from tables: find columns, read labels, hold out validation rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gkd_core import digest
from gkd_core.config.schema import TaskConfig
from gkd_core.contract.task import Split, TaskData
from gkd_core.data.columns import CheckedRows, find_columns, select
from gkd_core.data.holdout import hold_out
from gkd_core.data.labels import class_ids, find_classes, infer_kind, label_values
from gkd_core.data.table import Table
from gkd_core.kinds.kind import LM_KINDS, Kind


@dataclass(frozen=True)
class Tables:
    """The tables of a task; without `validation`, a share of `train` is held out."""

    train: Table
    validation: Table | None = None
    test: Table | None = None


def assemble(
    tables: Tables, config: TaskConfig, kind: Kind | None, seed: int, source: str
) -> TaskData:
    """Check the tables and build the task.

    Args:
        tables: The rows as read.
        config: Column names and share to hold out.
        kind: Kind of the task; None: classification or regression, inferred from the labels.
        seed: Seed for the held-out share.
        source: User-facing name of the data.

    Raises:
        DataError: A column, row or label is invalid.
    """
    columns = find_columns(tables.train, config, labelled=kind not in LM_KINDS)
    train = select(tables.train, columns)
    if kind is None:
        kind = infer_kind(train.labels or ())
    classes: tuple[str, ...] = ()
    if kind == "classification":
        classes = _classes(train, tables.train.classes.get(columns.label or "", ()))
    splits = {"train": _split(train, kind, classes)}
    for name, table in (("validation", tables.validation), ("test", tables.test)):
        if table is not None:
            splits[name] = _split(select(table, columns), kind, classes)
    if "validation" not in splits:
        splits["train"], splits["validation"] = hold_out(
            splits["train"], config.validation_share, seed, tables.train.source
        )
    return TaskData(
        kind=kind,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        classes=classes,
        rows_hash=hash_rows(kind, classes, splits),
        source=source,
    )


def without_labels(data: TaskData, kind: Kind) -> TaskData:
    """Return the rows of a task as plain text, with the same splits.

    Args:
        data: The task.
        kind: `masked-lm` or `causal-lm`.
    """
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    # Pairs have no meaning in language modeling, so both texts become rows.
    splits = {
        name: Split([*split.text, *(split.pair or ())])
        for name, split in parts.items()
        if split is not None
    }
    return TaskData(
        kind=kind,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        classes=(),
        rows_hash=hash_rows(kind, (), splits),
        source=data.source,
    )


def hash_rows(kind: Kind, classes: Sequence[str], splits: Mapping[str, Split]) -> str:
    """Return a hash of the kind, the classes and all rows."""
    return digest.of_bytes(_row_bytes(kind, classes, splits))


def _row_bytes(kind: Kind, classes: Sequence[str], splits: Mapping[str, Split]) -> Iterator[bytes]:
    yield json.dumps([kind, list(classes)]).encode()
    for name, split in splits.items():
        yield json.dumps([name, len(split)]).encode()
        for column in (split.text, split.pair, split.labels):
            for value in column or ():
                yield json.dumps(value).encode() + b"\n"


def _classes(train: CheckedRows, declared: tuple[str, ...]) -> tuple[str, ...]:
    found = find_classes(train.labels or (), train.table.source)
    return declared or found


def _split(rows: CheckedRows, kind: Kind, classes: Sequence[str]) -> Split:
    if rows.labels is None:
        # Pairs have no meaning in language modeling, so both texts become rows.
        return Split(rows.text + (rows.pair or []))
    numbers, faults = rows.table.numbers, rows.table.faults
    labels = (
        label_values(rows.labels, numbers, faults)
        if kind == "regression"
        else class_ids(rows.labels, classes, numbers, faults)
    )
    faults.check()
    return Split(rows.text, rows.pair, labels)
