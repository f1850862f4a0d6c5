"""`Benchmark`: the base of the tasks of a benchmark, read from their original files or the hub."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gkd_core.benchmarks.raw_row import MissingColumn, RawRow
from gkd_core.contract.task import Split, Task, TaskData
from gkd_core.data.assemble import hash_rows, without_labels
from gkd_core.data.holdout import hold_out
from gkd_core.data.hub import open_dataset, split_table
from gkd_core.data.readers import read
from gkd_core.errors import ConfigError, DataError
from gkd_core.kinds.metrics import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from gkd_core.data.table import Table

TEST_SHARE = 0.2
"""Share of the training rows that are tested on where a directory has no validation file."""

SCORE = Metric("score", higher_is_better=True)
"""The mean of a task's official metrics, which the average over a benchmark counts."""

OWN_COLUMNS = ("text", "text_pair", "label", "target", "group")
"""Settings that name columns, which a benchmark's task knows."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A row as models read it.

    Attributes:
        text: The text.
        pair: The second text, or a list of choices.
        label: A class id, the number of the right choice, or a value.
        group: The name of the group of rows that it belongs to.
    """

    text: str
    pair: str | Sequence[str] | None = None
    label: Any = None
    group: str | None = None


class Benchmark(Task):
    """A task of a benchmark.

    The official validation rows are the test rows of a run, because the labels of the official
    test rows are not public. The validation rows are a share of the training rows.

    Attributes:
        folder: Its directory in the archive of the benchmark.
        files: Names of the files that make up each split.
        hub: Dataset and configuration on the Hugging Face hub.
        hub_splits: Names of the splits on the hub that make up each split.
        classes: Names of the classes in the order of their ids, in lower case.
        as_encoder: The kind of task, unless `task.kind` names another.
        official: Names of the official metrics.
        text: The column of the text.
        pair: The column of the second text, or None.
        label: The column of the label.
    """

    folder: ClassVar[str]
    files: ClassVar[Mapping[str, Sequence[str]]]
    hub: ClassVar[str]
    hub_splits: ClassVar[Mapping[str, Sequence[str]]] = {
        "train": ("train",),
        "test": ("validation",),
    }
    classes: ClassVar[tuple[str, ...]] = ()
    as_encoder: ClassVar[str] = "classification"
    official: ClassVar[tuple[str, ...]] = ("accuracy",)
    text: ClassVar[str] = "sentence1"
    pair: ClassVar[str | None] = "sentence2"
    label: ClassVar[str] = "label"

    def read(self, row: RawRow) -> Iterable[Example]:
        """Return the examples in a row of a file: here the one in its columns.

        Args:
            row: The row.

        Raises:
            ValueError: The row is invalid; the message says why.
        """
        text = row.text(self.text)
        pair = None if self.pair is None else row.text(self.pair)
        return [Example(text, pair, row.class_id(self.label, self.classes))]

    def check(self) -> None:
        """Reject settings of other tasks, and a directory without the files.

        Raises:
            ConfigError: A column is named, or a kind that the rows cannot have.
            DataError: A file is missing.
        """
        for setting in OWN_COLUMNS:
            if (value := getattr(self.config, setting)) is not None:
                raise ConfigError(
                    f"task.{setting} is {value!r}, but the task {self.name!r} knows its columns; "
                    "remove it"
                )
        kinds = (self.as_encoder, *self._plain)
        if self.kind is not None and self.kind not in kinds:
            raise ConfigError(
                f"task.kind is {self.kind!r}, but rows of {self.name!r} are of "
                f"{' or '.join(map(repr, kinds))}"
            )
        self._paths()

    def load(self, kind: str, seed: int) -> TaskData:
        """Read the rows. `kind` is not used, because the task decides it.

        Raises:
            DataError: A file or row is invalid; names file, line and reason.
        """
        splits = {name: self.join(tables) for name, tables in self._tables().items()}
        origin = self.config.train or f"{self.hub} on the hub"
        if "test" not in splits:
            logger.warning(
                "%s has no official validation rows (%s): %.0f %% of the training rows are the "
                "test rows",
                origin,
                " and ".join(self.files["test"]),
                100 * TEST_SHARE,
            )
            # Runs of different seeds are compared on the same rows.
            splits["train"], splits["test"] = hold_out(splits["train"], TEST_SHARE, 0, origin)
        if "validation" not in splits:
            share = self.config.validation_share
            splits["train"], splits["validation"] = hold_out(splits["train"], share, seed, origin)
        data = TaskData(
            kind=self.as_encoder,
            **splits,
            classes=self.classes,
            rows_hash=hash_rows(self.as_encoder, self.classes, splits),
            source=f"{self.name} in {origin}",
        )
        return without_labels(data, self.kind) if self.kind in self._plain else data

    def join(self, tables: Sequence[Table]) -> Split:
        """Return the rows of a split.

        Args:
            tables: The tables that it consists of.

        Raises:
            DataError: A row is invalid.
        """
        return _split([example for table in tables for example in self._examples(table)])

    def judge(
        self, split: Split, predictions: Tensor | Sequence[Any], data: TaskData
    ) -> dict[str, float]:
        """Return the official metrics that the kind of task does not have; see `measure`."""
        return {}

    def measure(
        self, split: Split, predictions: Tensor | Sequence[Any], data: TaskData
    ) -> Mapping[str, float]:
        """Return the official metrics and, if there are several, their mean, the `score`."""
        found = self.judge(split, predictions, data)
        if len(self.official) > 1:
            found["score"] = sum(found[name] for name in self.official) / len(self.official)
        return found

    def read_file(self, path: Path) -> Table:
        """Return the rows of a file as they are."""
        return read(path)

    @property
    def _plain(self) -> list[str]:
        """Names of the kinds that read the texts only."""
        return [name for name, kind in self.kinds.items() if kind.is_lm]

    def _tables(self) -> dict[str, list[Table]]:
        """Return the tables of each split."""
        if self.config.train is not None:
            paths = self._paths()
            return {name: list(map(self.read_file, found)) for name, found in paths.items()}
        advice = f"Check the network, or name a directory with the files of {self.name} by --data"
        dataset = open_dataset(self.hub, f"of the task {self.name}", advice)
        return {
            name: [split_table(dataset, split, self.hub) for split in found]
            for name, found in self.hub_splits.items()
        }

    def _paths(self) -> dict[str, list[Path]]:
        """Return the files of each split."""
        paths: dict[str, list[Path]] = {}
        if self.config.train is not None:
            given = Path(self.config.train).expanduser()
            paths = {"train": [given]} if given.is_file() else self._in_directory(given)
        for split in ("validation", "test"):
            if (name := getattr(self.config, split)) is not None:
                paths[split] = [Path(name).expanduser()]
                _check_file(paths[split][0], f"task.{split}")
        return paths

    def _in_directory(self, directory: Path) -> dict[str, list[Path]]:
        """Return the files of each split that a directory has, or one in it of the task's name."""
        if not directory.is_dir():
            raise DataError(
                f"{directory} (task.train) does not exist. Name the directory with the files of "
                f"{self.name}"
            )
        inner = (path for path in directory.iterdir() if path.name.lower() == self.folder.lower())
        for place in (directory, *inner):
            paths = {split: [place / name for name in names] for split, names in self.files.items()}
            found = {split: all(map(Path.is_file, files)) for split, files in paths.items()}
            if found["train"]:
                return {split: files for split, files in paths.items() if found[split]}
        raise DataError(
            f"{directory} (task.train) has no {' and '.join(self.files['train'])}, the training "
            f"rows of {self.name}. Name the directory with its files"
        )

    def _examples(self, table: Table) -> list[Example]:
        """Return the examples in a table, whose bad rows are reported together."""
        table.check_filled()
        examples: list[Example] = []
        for index, number in enumerate(table.numbers):
            values = {name: column[index] for name, column in table.columns.items()}
            try:
                examples += self.read(RawRow(values))
            except MissingColumn as missing:
                table.faults.check()
                raise DataError(
                    f"{table.source}:{number}: there is no {str(missing)!r}, which rows of "
                    f"{self.name} have; the row has {', '.join(map(repr, values))}. Is it the file "
                    "of another task?"
                ) from missing
            except ValueError as error:
                table.faults.add(number, str(error))
        table.faults.check()
        return examples


def _split(examples: Sequence[Example]) -> Split:
    """Return examples as columns; one that no example has a value in is None."""

    def column(name: str) -> list[Any] | None:
        values = [getattr(example, name) for example in examples]
        return None if all(value is None for value in values) else values

    texts = [example.text for example in examples]
    return Split(texts, column("pair"), column("label"), column("group"))


def _check_file(path: Path, setting: str) -> None:
    if not path.is_file():
        raise DataError(f"{path} ({setting}) is no file. Name a file of the task's own format")
