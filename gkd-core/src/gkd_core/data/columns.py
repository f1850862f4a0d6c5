"""Find the text and label columns of a table, and check their values row by row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from gkd_core.config.schema import TaskConfig
from gkd_core.contract.task import Split
from gkd_core.data.labels import is_missing, is_unlabeled, label_name
from gkd_core.data.spooled_table import spooled
from gkd_core.data.stored_column import StoredColumn
from gkd_core.data.table import Table
from gkd_core.errors import DataError, suggest

PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("question", "sentence"),
    ("question", "passage"),
)
TEXTS = ("sentence", "text")
LABELS = ("label", "labels", "target", "class")


@dataclass(frozen=True)
class Columns:
    """Names of the columns in use; `label` is None if rows have no labels."""

    text: str
    pair: str | None
    label: str | None
    group: str | None = None
    target: str | None = None


@dataclass(frozen=True)
class CheckedRows:
    """Checked rows of a table: every row has a text and, if required, a label.

    Attributes:
        table: The table of the rows, in the same order.
        text: The texts.
        pair: The second texts of a pair task.
        labels: The labels as strings, or None if rows have none.
        group: The names of the groups, or None.
        target: The target texts, or None.
    """

    table: Table
    text: Sequence[str]
    pair: Sequence[str] | None
    labels: Sequence[str] | None
    group: Sequence[str] | None = None
    target: Sequence[str] | None = None

    def split(self, labels: Sequence[Any] | None) -> Split:
        """Return the rows as a split with parsed labels, or without labels.

        Raises:
            DataError: A row is invalid.
        """
        self.table.faults.check()
        return Split(self.text, self.pair, labels, self.group)


def find_columns(
    table: Table, config: TaskConfig, labeled: bool, others: Sequence[Table] = ()
) -> Columns:
    """Return the columns named in the configuration, or else those with common names.

    Args:
        table: The training table.
        config: Names given by the user.
        labeled: Whether the task has labels.
        others: Tables that may have the column of the labels where the training table does not.

    Raises:
        DataError: A column is missing or ambiguous.
    """
    table.check_filled()
    check_label([table, *others], config)
    for setting in ("text", "text_pair", "group", "target"):
        if (name := getattr(config, setting)) is not None:
            _check_column(table, name, f"task.{setting}")
    label = find_label([table, *others], config) if labeled else None
    if config.text is not None:
        text, pair = config.text, config.text_pair
    else:
        text, pair = _find_text(table, {label, config.group, config.target, config.context})
    return Columns(text, pair, label, config.group, config.target)


def pick_column(table: Table, given: str | None, usual: Sequence[str]) -> str | None:
    """Return the column that the user named, or else the first of those with usual names.

    Args:
        table: The table.
        given: The name in the configuration, if any.
        usual: Usual names in lower case.

    Returns:
        The name of the column; None if the table has none.
    """
    if given is not None:
        return given if given in table.columns else None
    lower = {name.lower(): name for name in table.columns}
    return next((lower[name] for name in usual if name in lower), None)


def find_label(tables: Sequence[Table], config: TaskConfig) -> str | None:
    """Return the label column that the user named, or else one with a usual name.

    Args:
        tables: The tables in the order in which they are searched.
        config: Names given by the user.

    Returns:
        The name of the column; None if no table has one.

    Raises:
        DataError: A table has several.
    """
    if config.label is not None:
        return config.label
    for table in tables:
        found = _present(table, LABELS)
        if len(found) > 1:
            raise _no_label(table, f"several label columns, {_listed(found)}")
        if found:
            return found[0]
    return None


def check_label(tables: Sequence[Table], config: TaskConfig) -> None:
    """Raise `DataError` if no table has the label column that the user named."""
    if config.label is not None and not any(config.label in table.columns for table in tables):
        _check_column(tables[0], config.label, "task.label")


def has_labels(table: Table, column: str | None) -> bool:
    """Return whether a table has a column of labels, and a label in any of its rows."""
    return column is not None and not is_unlabeled(table.columns.get(column, ()))


def refuse_unlabeled(table: Table, config: TaskConfig) -> NoReturn:
    """Raise `DataError` for rows without labels, of which no model says what they are for."""
    table.faults.check()  # the column may be missing because of them
    check_label([table], config)
    label = find_label([table], config)
    raise _no_label(table, "no label column") if label is None else _all_empty(table, label)


def label_columns(table: Table, config: TaskConfig) -> list[str]:
    """Return the label column that the user named, or else all with a usual name."""
    return _present(table, LABELS) if config.label is None else [config.label]


def find_text(
    table: Table, config: TaskConfig, excluded: Collection[str]
) -> tuple[str, str | None]:
    """Return the columns of the text and, for pairs, of the second one.

    Args:
        table: The training table.
        config: Names given by the user.
        excluded: Columns that hold something else.

    Raises:
        DataError: A column is missing or ambiguous.
    """
    table.check_filled()
    for setting in ("text", "text_pair"):
        if (name := getattr(config, setting)) is not None:
            _check_column(table, name, f"task.{setting}")
    if config.text is not None:
        return config.text, config.text_pair
    return _find_text(table, excluded)


def select_texts(table: Table, text: str, pair: str | None, labels: Sequence[Any] | None) -> Split:
    """Return texts with labels that are parsed already.

    Raises:
        DataError: A column is missing, or a row is invalid.
    """
    rows = select(table, Columns(text, pair, None))
    return Split(rows.text, rows.pair, labels)


def select(table: Table, columns: Columns, labeled: bool = True) -> CheckedRows:
    """Extract the columns from a table and check all values.

    Args:
        table: The table.
        columns: Its columns.
        labeled: Whether its rows must have labels; otherwise they may all be without.

    Raises:
        DataError: A column is missing, a row is invalid, or no row has a label but must.
    """
    table.check_filled()
    if not labeled and not has_labels(table, columns.label):
        columns = replace(columns, label=None)
    for name in (columns.text, columns.pair, columns.label, columns.group, columns.target):
        if name is not None and name not in table.columns:
            what = "labels" if name == columns.label else f"column {name!r}"
            raise DataError(
                f"{table.source} has no {what}: the training data has the column {name!r}, but "
                f"this has {_listed(table.columns)}. Give a file with the same columns"
            )
    text = _texts(table, columns.text)
    pair = None if columns.pair is None else _texts(table, columns.pair)
    labels = None if columns.label is None else _labels(table, columns.label)
    group = None if columns.group is None else _names(table, columns.group, "group")
    target = None if columns.target is None else _texts(table, columns.target)
    table.faults.check()
    return CheckedRows(table, text, pair, labels, group, target)


def _texts(table: Table, column: str) -> Sequence[str]:
    """Return a column of texts; what is none of them is recorded in the faults of the table."""
    values = table.columns[column]
    if not isinstance(values, (list, StoredColumn)):
        values = spooled(values)  # a column of a plugin or a hub data set
    for number, value in zip(table.numbers, values, strict=True):
        if is_missing(value):
            table.faults.add(number, f"the text is empty (column {column!r})")
        elif not isinstance(value, str):
            table.faults.add(number, f"the text is {value!r}, not a string (column {column!r})")
    return values


def _labels(table: Table, column: str) -> list[str]:
    values = table.columns[column]
    if is_unlabeled(values):
        raise _all_empty(table, column)
    names: list[str] = []
    missing = 0
    known: dict[Any, str] = {}  # of a million rows, most have the same few labels
    for number, value in zip(table.numbers, values, strict=True):
        try:
            names.append(_known_name(value, known))
        except ValueError as error:
            missing += is_missing(value)
            table.faults.add(number, f"{error} (column {column!r})")
    if missing:
        table.faults.advice = (
            f"{missing} of {len(values)} rows have no label. Label or remove them; or leave the "
            "labels of all rows out for methods that need none, such as soft"
        )
    return names


def _known_name(value: Any, known: dict[Any, str]) -> str:
    """Return the label as a string, the same object for equal labels.

    Args:
        value: The label.
        known: The strings of labels so far, which it adds to.

    Raises:
        ValueError: The label is missing or malformed.
    """
    if type(value) not in (str, int):  # to Python, `True` and 1.0 are equal to 1
        name = label_name(value)
        return known.setdefault(name, name)
    if value not in known:
        known[value] = label_name(value)
    return known[value]


def column_of_names(table: Table, column: str, setting: str) -> Sequence[str]:
    """Return the names in a column, such as the source of each row; values of any type are names.

    Args:
        table: The table.
        column: The column that the user named.
        setting: The setting that names it.

    Raises:
        DataError: There is no such column, or a row has no name in it.
    """
    _check_column(table, column, setting)
    names = _names(table, column, setting.rpartition(".")[2])
    table.faults.check()
    return names


def _names(table: Table, column: str, what: str) -> Sequence[str]:
    for number, value in zip(table.numbers, table.columns[column], strict=True):
        if is_missing(value):
            table.faults.add(number, f"the row has no {what} (column {column!r})")
    return spooled(map(str, table.columns[column]))


def _check_column(table: Table, name: str, setting: str) -> None:
    if name not in table.columns:
        raise DataError(
            f"{table.source} has no column {name!r} ({setting}).{suggest(name, table.columns)} "
            f"The columns are {_listed(table.columns)}"
        )


def _no_label(table: Table, problem: str) -> DataError:
    return DataError(
        f"{table.source} has {problem}: the columns are {_listed(table.columns)}. "
        "Name it with --set task.label=COLUMN; for unlabeled text set task.kind to masked-lm "
        "or causal-lm, or to the kind of a teacher that is to label it"
    )


def _all_empty(table: Table, column: str) -> DataError:
    return DataError(
        f"{table.source} has no labels: column {column!r} is empty or -1 in every row. "
        "Give a labeled file"
    )


def _find_text(table: Table, excluded: Collection[str | None]) -> tuple[str, str | None]:
    """Return the text column and, for pairs, the second one."""
    names = [name for name in table.columns if name not in excluded]
    lower = {name.lower(): name for name in names}
    found: list[tuple[str, str | None]] = [
        (lower[a], lower[b]) for a, b in PAIRS if a in lower and b in lower
    ]
    taken = {name for pair in found for name in pair}
    found += [(lower[name], None) for name in TEXTS if name in lower and lower[name] not in taken]
    used = {name for pair in found for name in pair}
    # `Text` beside `text` is another column, and as likely the one that is meant.
    found += [(name, None) for name in names if name not in used and lower[name.lower()] in used]
    if len(found) == 1:
        return found[0]
    candidates = [" + ".join(filter(None, pair)) for pair in found]
    problem = f"several text columns, {_listed(candidates)}" if found else "no text column"
    raise DataError(
        f"{table.source} has {problem}: the columns are {_listed(table.columns)}. "
        "Name it with --set task.text=COLUMN (and task.text_pair for the second text of a pair)"
    )


def _present(table: Table, candidates: Sequence[str]) -> list[str]:
    return [name for name in table.columns if name.lower() in candidates]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
