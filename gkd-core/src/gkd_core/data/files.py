"""`files`: a task read from local files."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_core.contract.task import Task, TaskData
from gkd_core.data.assemble import Tables, assemble, infer_kind
from gkd_core.data.readers import READERS, check_suffix, read
from gkd_core.errors import ConfigError, DataError, suggest
from gkd_core.named_path import named_path

if TYPE_CHECKING:
    from gkd_core.kinds.task_kind import TaskKind

STEMS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


logger = logging.getLogger(__name__)


class Files(Task):
    """Tables (jsonl, json, csv, tsv, parquet) or plain text (txt) in local files.

    `task.train` names a file, or a directory with a file `train.*` and, optionally, `validation.*`
    (or `valid`, `val`, `dev`) and `test.*`. The files may differ in format. A warning names the
    other tables of the directory, which are not read.
    """

    name = "files"

    @classmethod
    def facts(cls) -> dict[str, str]:
        """Return the facts that `gkd tasks` shows."""
        return super().facts() | {"data": f"files ({', '.join(READERS)}), or a directory of them"}

    def check(self) -> None:
        """Check that the files exist.

        Raises:
            ConfigError: `task.train` is missing, or `task.text_pair` is set without `task.text`.
            DataError: A file is missing or has an unknown format, or a directory is ambiguous.
        """
        if self.config.text_pair is not None and self.config.text is None:
            raise ConfigError(
                f"task.text_pair is {self.config.text_pair!r}, but task.text is not set: "
                "name both columns of the pair"
            )
        self._paths()

    def files(self) -> dict[str, Path]:
        """Return the file of each split."""
        return self._paths()

    def load(self, kind: str, seed: int) -> TaskData:
        """Read the files. `kind` is used for plain text; for tables, the labels decide.

        Raises:
            DataError: A file or row is invalid; names file, line and reason.
        """
        paths = self._paths()
        name = self.kind
        if name is None and paths["train"].suffix.lower() == ".txt":
            name = kind
        chosen = None if name is None else self.kinds[name]
        self._check_plain(paths, chosen)
        self._tell_unread(paths.values())
        tables = {split: read(path) for split, path in paths.items()}
        source = ", ".join(str(path) for path in paths.values())
        chosen = chosen or infer_kind(tables["train"], self.config, self.kinds, self.model_kind)
        return assemble(Tables(**tables), self.config, chosen, seed, source, self.model_classes)

    def _check_plain(self, paths: dict[str, Path], kind: TaskKind | None) -> None:
        plain = [path for path in paths.values() if path.suffix.lower() == ".txt"]
        if plain and not (kind and kind.is_lm):
            raise DataError(
                f"{plain[0]} is plain text and has no labels for {kind or 'classification'}. Set "
                "task.kind to masked-lm or causal-lm, or give a table (jsonl, csv, tsv, parquet)"
            )

    def _tell_unread(self, read: Iterable[Path]) -> None:
        """Warn about tables in the directory that have the name of no split."""
        directory = named_path(str(self.config.train))
        if not directory.is_dir():
            return
        tables = {path for path in directory.iterdir() if path.suffix.lower() in READERS}
        others = sorted(path.name for path in tables - set(read))
        if others:
            logger.warning(
                "%s has other tables, which are not read: %s. Name the files with task.train, "
                "task.validation and task.test",
                directory,
                ", ".join(others),
            )

    def _paths(self) -> dict[str, Path]:
        """Return the file of each available split."""
        if self.config.train is None:
            raise ConfigError("task.train is not set: name a file or a directory to train on")
        train = named_path(self.config.train)
        paths = _in_directory(train) if train.is_dir() else {"train": train}
        for split in ("validation", "test"):
            if (name := getattr(self.config, split)) is not None:
                paths[split] = named_path(name)
        for split, path in paths.items():
            _check_file(path, f"task.{split}")
        return paths


def _check_file(path: Path, setting: str) -> None:
    if path.is_file():
        return check_suffix(path)
    parent = path.parent
    if path.is_dir():
        raise DataError(f"{path} ({setting}) is a directory; only task.train may be one")
    if not parent.is_dir():
        raise DataError(f"{path} ({setting}) does not exist: there is no directory {parent}")
    raise DataError(
        f"{path} ({setting}) does not exist."
        f"{suggest(path.name, (entry.name for entry in parent.iterdir()))} "
        "For a dataset on the Hugging Face hub, set task.name=hub"
    )


def _in_directory(directory: Path) -> dict[str, Path]:
    """Return the file of each split found in a directory."""
    paths = {}
    for split, stems in STEMS.items():
        found = sorted(
            path
            for path in directory.iterdir()
            if path.stem.lower() in stems and path.suffix.lower() in READERS
        )
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise DataError(
                f"{directory} has several files for {split}: {names}. Name the files with "
                "task.train, task.validation and task.test"
            )
        if found:
            paths[split] = found[0]
    if "train" not in paths:
        raise DataError(
            f"{directory} (task.train) has no training file: expected train.* with one of "
            f"the suffixes {', '.join(READERS)}"
        )
    return paths
