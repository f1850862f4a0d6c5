"""`hub`: a task loaded with Hugging Face `datasets`."""

from __future__ import annotations

import logging
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_core.contract.task import Task, TaskData
from gkd_core.data.assemble import Tables, assemble, infer_kind
from gkd_core.data.first_rows import first_rows
from gkd_core.data.hub_column import HubColumn
from gkd_core.data.table import Faults, Table
from gkd_core.errors import ConfigError, DataError, suggest
from gkd_core.named_path import named_path

if TYPE_CHECKING:
    from datasets import DatasetDict

    from gkd_core.kinds.task_kind import TaskKind

FIRST_ROWS = re.compile(r"(.+)\[:([1-9]\d*)\]")
"""A dataset and a number of rows, written as the first rows of a split in `datasets`."""

BENCHMARKS = {"glue": "nyu-mll/glue", "super_glue": "aps/super_glue"}

logger = logging.getLogger(__name__)


class Hub(Task):
    """A dataset on the Hugging Face hub, or a local directory that `load_dataset` can read.

    `task.train` is `NAME` or `NAME:CONFIGURATION`, such as `imdb`, `nyu-mll/glue:sst2` or, for
    the two benchmarks, `glue/sst2` and `super_glue/boolq`. `NAME[:1000]` is the first 1,000 rows of
    each split; only these are downloaded. The training split is `train`;
    `task.validation` and `task.test` name the others (default `validation` and `test`, if the
    dataset has them and the test rows have labels). Dataset code is never executed.
    """

    name = "hub"

    @classmethod
    def facts(cls) -> dict[str, str]:
        """Return the facts that `gkd tasks` shows."""
        return super().facts() | {"data": "a dataset of the hub"}

    def check(self) -> None:
        """Raise `ConfigError` if no dataset is named, or other rows than its first."""
        name = self.config.train
        if name is None:
            raise ConfigError("task.train is not set: name a dataset, such as glue/sst2")
        if name.endswith("]") and FIRST_ROWS.fullmatch(name) is None:
            raise ConfigError(
                f"task.train is {name!r}, but only the first rows of a dataset can be taken, as in "
                f"{name.partition('[')[0]}[:1000]. task.rows takes some of all rows"
            )

    def files(self) -> dict[str, Path] | None:
        """Return the Arrow files of the dataset; None if it is in memory."""
        found = {
            f"{split} {number}": Path(file["filename"])
            for split, rows in self._splits.items()
            for number, file in enumerate(rows.cache_files)
        }
        return found or None

    def load(self, kind: str, seed: int) -> TaskData:
        """Download or open the dataset. `kind` is not used, because the labels decide.

        Raises:
            DataError: The dataset cannot be loaded, a split is missing, or a row is invalid.
        """
        self.check()
        source, splits = str(self.config.train), self._splits
        train = split_table(splits, "train", source)
        chosen = self._kind(train)
        validation = self.config.validation or _default_validation(splits, source)
        tables = Tables(
            train=train,
            validation=None if validation is None else split_table(splits, validation, source),
            test=self._test(splits, train, source, chosen),
        )
        return assemble(tables, self.config, chosen, seed, source, self.model_classes)

    @cached_property
    def _splits(self) -> DatasetDict:
        """The dataset, opened once."""
        return open_dataset(
            str(self.config.train),
            "(task.train)",
            "Check the name and the network; NAME:CONFIGURATION selects a configuration, and for "
            "local files set task.name=files",
        )

    def _kind(self, train: Table) -> TaskKind:
        if self.kind is not None:
            return self.kinds[self.kind]
        return infer_kind(train, self.config, self.kinds, self.model_kind)

    def _test(self, splits: DatasetDict, train: Table, source: str, kind: TaskKind) -> Table | None:
        if self.config.test is not None:
            return split_table(splits, self.config.test, source)
        if "test" not in splits:
            return None
        table = split_table(splits, "test", source)
        if kind.is_labeled(table, train, self.config):
            return table
        logger.warning("%s has no labels and is ignored", table.source)
        return None


def _address(name: str) -> tuple[str, str | None]:
    """Return the path and configuration for `load_dataset`."""
    folder = named_path(name)
    if folder.is_dir():
        return str(folder), None
    path, _, configuration = name.partition(":")
    benchmark, _, task = path.partition("/")
    if benchmark in BENCHMARKS and task and not configuration:
        return BENCHMARKS[benchmark], task
    return BENCHMARKS.get(path, path), configuration or None


def open_dataset(name: str, what: str, advice: str) -> DatasetDict:
    """Download a dataset, or open it where it is cached or a local directory.

    Args:
        name: `NAME` or `NAME:CONFIGURATION`, and `[:N]` for the first N rows of each split.
        what: Words that follow its name in an error: who asks for it.
        advice: What to do if it cannot be loaded.

    Raises:
        DataError: It cannot be loaded.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetsError

    first = FIRST_ROWS.fullmatch(name)
    path, configuration = _address(name if first is None else first[1])
    try:
        if first is not None:
            return first_rows(path, configuration, int(first[2]))
        return load_dataset(path, configuration)
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        raise DataError(
            f"the dataset {name!r} {what} cannot be loaded: {reason}. {advice}"
        ) from error


def _default_validation(splits: DatasetDict, source: str) -> str | None:
    found = [name for name in splits if name.startswith(("val", "dev"))]
    if len(found) > 1 and "validation" not in found:
        raise DataError(
            f"{source} has the validation splits {', '.join(found)}; choose one with "
            "task.validation"
        )
    return "validation" if "validation" in found else next(iter(found), None)


def split_table(splits: DatasetDict, split: str, source: str) -> Table:
    """Return a split of a dataset as a table, with names in place of class ids.

    Args:
        splits: The dataset.
        split: The name of the split.
        source: User-facing name of the dataset.

    Raises:
        DataError: There is no such split.
    """
    if split not in splits:
        raise DataError(
            f"{source} has no split {split!r}.{suggest(split, splits)} "
            f"The splits are {', '.join(splits)}"
        )
    dataset = splits[split]
    columns = {name: HubColumn(dataset, name) for name in dataset.column_names}
    classes = {name: column.classes for name, column in columns.items() if column.classes}
    faults = Faults(f"{source} [{split}]", unit="row")
    return Table(columns, range(1, len(dataset) + 1), faults, classes)
