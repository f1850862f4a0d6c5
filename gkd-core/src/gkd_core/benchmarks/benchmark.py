"""`Benchmark`: the base of the tasks of a benchmark, read from their original files or the hub."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gkd_core.benchmarks.example import Example, columns
from gkd_core.benchmarks.raw_row import MissingColumn, RawRow
from gkd_core.contract.task import BLANK, Split, Task, TaskData
from gkd_core.data.assemble import hash_rows, without_labels
from gkd_core.data.holdout import hold_out
from gkd_core.data.hub import open_dataset, split_table
from gkd_core.data.readers import read
from gkd_core.errors import ConfigError, DataError
from gkd_core.kinds.metrics import Metric
from gkd_core.named_path import named_path

if TYPE_CHECKING:
    from torch import Tensor

    from gkd_core.data.table import Table

Files = Mapping[str, Sequence[str]]
"""Names of the files, or of the splits on the hub, that make up each split of a run."""

TEST_SHARE = 0.2
"""Share of the training rows that are tested on where there is no official validation file."""

SCORE = Metric("score", higher_is_better=True)
"""The mean of a task's official metrics, which the average over a benchmark counts."""

CLOZE = ("masked-cloze", "causal-cloze")
"""The kinds that fill in a blank."""

OWN_COLUMNS = ("text", "text_pair", "label", "target", "group")
"""Settings that name columns, which a benchmark's task knows."""

logger = logging.getLogger(__name__)


class Benchmark(Task):
    """A task of a benchmark.

    The official validation rows are the test rows of a run, because the labels of the official
    test rows are not public. The validation rows are a share of the training rows.

    Attributes:
        folder: Its directory in the archive of the benchmark.
        layouts: The files of each split, in each of the layouts in which they are distributed.
        hub: Dataset and configuration on the Hugging Face hub.
        hub_splits: The splits on the hub.
        classes: Names of the classes in the order of their ids, in lower case.
        official: Names of the official metrics.
        as_encoder: The kind of task, unless `task.kind` names another.
        text: The column of the text.
        pair: The column of the second text, or None.
        label: The column of the label.
        pattern: The text with a `{blank}` for the cloze kinds; empty if it has no such form.
            `{bare_text}` and `{bare_pair}` are the texts without the point at their end.
        words: What stands in the blank for each class; empty if rows have candidates of their own.
    """

    folder: ClassVar[str]
    layouts: ClassVar[Sequence[Files]]
    hub: ClassVar[str]
    hub_splits: ClassVar[Files] = {"train": ("train",), "test": ("validation",)}
    classes: ClassVar[tuple[str, ...]] = ()
    official: ClassVar[tuple[str, ...]] = ("accuracy",)
    as_encoder: ClassVar[str] = "classification"
    text: ClassVar[str] = "sentence1"
    pair: ClassVar[str | None] = "sentence2"
    label: ClassVar[str] = "label"
    pattern: ClassVar[str] = ""
    words: ClassVar[tuple[str, ...]] = ()

    # What tasks override

    def read(self, row: RawRow) -> Iterable[Example]:
        """Return the examples in a row of a file: here the one in its columns.

        Args:
            row: The row.

        Raises:
            ValueError: The row is invalid; the message says why.
        """
        text = row.text(self.text)
        pair = None if self.pair is None else row.text(self.pair)
        label = row.class_id(self.label, self.classes)
        return [Example(text, pair, label, prompt=self.fill(text=text, pair=pair or ""))]

    def read_file(self, path: Path) -> Table:
        """Return the rows of a file as they are."""
        return read(path)

    def join(self, tables: Sequence[Table]) -> Split:
        """Return the rows of a split.

        Args:
            tables: The tables that it consists of.

        Raises:
            DataError: A row is invalid.
        """
        return self.split([example for table in tables for example in self.examples(table)])

    def split(self, examples: Sequence[Example]) -> Split:
        """Return examples in the form of the kind of task."""
        return columns(examples, cloze=self.is_cloze)

    def together(self, split: Split) -> Sequence[str] | None:
        """Return names of rows that must not be divided by holding some out: their groups."""
        return split.group

    def taught(self, split: Split) -> Split:
        """Return the rows to train on, made from those that are not held out."""
        return split

    def judge(
        self, split: Split, predictions: Tensor | Sequence[Any], data: TaskData
    ) -> dict[str, float]:
        """Return the official metrics that the kind of task does not have; see `measure`."""
        return {}

    def hash(self, data: TaskData) -> str:
        """Return the hash of all that the rows consist of."""
        splits = {"train": data.train, "validation": data.validation, "test": data.test}
        found = {name: split for name, split in splits.items() if split is not None}
        return hash_rows(data.kind, data.classes, found)

    # The task

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
        kinds = [*self.forms(), *self._plain]
        if self.kind is not None and self.kind not in kinds:
            raise ConfigError(
                f"task.kind is {self.kind!r}, but rows of {self.name!r} are of "
                f"{', '.join(kinds[:-1])} or {kinds[-1]}"
            )
        self._paths()

    @classmethod
    def facts(cls) -> dict[str, str]:
        """Return the facts for `gkd tasks`, including the form as a cloze."""
        files = " or ".join(
            ", ".join(name for names in layout.values() for name in names) for layout in cls.layouts
        )
        metrics = " and ".join(cls.official)
        found = super().facts() | {
            "kind": ", ".join(cls.forms()),
            "metric": f"{SCORE.name} (the mean of {metrics})" if cls.metric == SCORE else metrics,
            "data": f"{files}, or {cls.hub} from the hub",
        }
        form = {"cloze": cls.pattern, "words": ", ".join(cls.words)}
        return found | {name: value for name, value in form.items() if value}

    def load(self, kind: str, seed: int) -> TaskData:
        """Read the rows. `kind` is not used, because the task decides it.

        Raises:
            DataError: A file or row is invalid; names file, line and reason.
        """
        splits = {name: self.join(tables) for name, tables in self.tables().items()}
        origin = self.config.train or f"{self.hub} on the hub"
        if "test" not in splits:
            logger.warning(
                "%s has no official validation rows (%s): %.0f %% of the training rows are the "
                "test rows",
                origin,
                " and ".join(self.layouts[0]["test"]),
                100 * TEST_SHARE,
            )
            # Runs of different seeds are compared on the same rows.
            self._hold_out(splits, "test", TEST_SHARE, 0, origin)
        if "validation" not in splits:
            self._hold_out(splits, "validation", self.config.validation_share, seed, origin)
        splits["train"] = self.taught(splits["train"])
        data = TaskData(
            kind=self.form,
            train=splits["train"],
            validation=splits["validation"],
            test=splits["test"],
            classes=self._classes(splits.values()),
            rows_hash="",
            source=f"{self.name} in {origin}",
        )
        data = replace(data, rows_hash=self.hash(data))
        return without_labels(data, self.kind) if self.kind in self._plain else data

    def measure(
        self, split: Split, predictions: Tensor | Sequence[Any], data: TaskData
    ) -> Mapping[str, float]:
        """Return the official metrics and, if their mean is what counts, the `score`."""
        found = self.judge(split, predictions, data)
        if self.metric == SCORE:
            found["score"] = sum(found[name] for name in self.official) / len(self.official)
        return found

    @classmethod
    def forms(cls) -> tuple[str, ...]:
        """Return the names of the kinds that its rows can have."""
        return (cls.as_encoder, *(CLOZE if cls.pattern else ()))

    @property
    def form(self) -> str:
        """The name of the kind of task; for language modeling, that of the labeled rows."""
        return self.as_encoder if self.kind is None or self.kind in self._plain else self.kind

    @property
    def is_cloze(self) -> bool:
        """Whether a model fills in a blank."""
        return self.form in CLOZE

    def fill(self, **texts: str) -> str:
        """Return the pattern with the texts of a row."""
        bare = {f"bare_{name}": text.rstrip(" .?!") for name, text in texts.items()}
        return self.pattern.format(**texts, **bare, blank=BLANK)

    def class_id(self, name: str, data: TaskData) -> int:
        """Return the id of a class, which the cloze kinds call by its word.

        Args:
            name: Its name in `classes`.
            data: The task, whose models may order the classes in another way.
        """
        called = self.words[self.classes.index(name)] if data.kind in CLOZE else name
        return data.classes.index(called)

    def tables(self) -> dict[str, list[Table]]:
        """Return the tables that make up each split."""
        if self.config.train is not None:
            paths = self._paths()
            return {name: list(map(self.read_file, found)) for name, found in paths.items()}
        advice = f"Check the network, or name a directory with the files of {self.name} by --data"
        dataset = open_dataset(self.hub, f"of the task {self.name}", advice)
        return {
            name: [split_table(dataset, split, self.hub) for split in found]
            for name, found in self.hub_splits.items()
        }

    def examples(self, table: Table) -> list[Example]:
        """Return the examples in a table, whose bad rows are reported together."""
        table.check_filled()
        examples: list[Example] = []
        for number, values in table.rows([*table.columns]):
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

    @property
    def _plain(self) -> list[str]:
        """Names of the kinds that read the texts only."""
        return [name for name, kind in self.kinds.items() if kind.is_lm]

    def _hold_out(
        self, splits: dict[str, Split], name: str, share: float, seed: int, origin: str
    ) -> None:
        """Take a share of the training rows as another split."""
        train = splits["train"]
        splits["train"], splits[name] = hold_out(train, share, seed, origin, self.together(train))

    def _classes(self, splits: Iterable[Split]) -> tuple[str, ...]:
        """Return the names of the classes, or the numbers of the choices."""
        if not (self.words if self.is_cloze else self.classes):
            pairs = (pair for split in splits for pair in split.pair or ())
            choices = max((len(pair) for pair in pairs if not isinstance(pair, str)), default=0)
            return tuple(map(str, range(choices)))
        return self.words if self.is_cloze else self.classes

    def _paths(self) -> dict[str, list[Path]]:
        """Return the files of each split."""
        paths: dict[str, list[Path]] = {}
        if self.config.train is not None:
            given = named_path(self.config.train)
            paths = {"train": [given]} if given.is_file() else self._in_directory(given)
        for split in ("validation", "test"):
            if (name := getattr(self.config, split)) is not None:
                paths[split] = [named_path(name)]
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
            for files in self.layouts:
                paths = {split: [place / name for name in names] for split, names in files.items()}
                found = {split: all(map(Path.is_file, files)) for split, files in paths.items()}
                if found["train"]:
                    return {split: files for split, files in paths.items() if found[split]}
        names = " or ".join(" and ".join(files["train"]) for files in self.layouts)
        raise DataError(
            f"{directory} (task.train) has no {names}, the training rows of {self.name}. Name the "
            "directory with its files"
        )


def _check_file(path: Path, setting: str) -> None:
    if not path.is_file():
        raise DataError(f"{path} ({setting}) is not a file. Name a file of the task's own format")
