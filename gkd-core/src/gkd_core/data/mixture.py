"""`mixture`: rows from several sources, each with its share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gkd_core.config.schema import data_shares
from gkd_core.contract.task import Split, Task, TaskData
from gkd_core.data.assemble import hash_rows
from gkd_core.data.chat import Message
from gkd_core.data.encode import CHUNK
from gkd_core.data.encode_chats import messages_of
from gkd_core.data.files import Files
from gkd_core.data.holdout import fewer, part_of
from gkd_core.data.hub import Hub
from gkd_core.data.spooled_table import joined, spooled
from gkd_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from gkd_core.config.schema import TaskConfig

SOURCES: Mapping[str, type[Task]] = MappingProxyType({"files": Files, "hub": Hub})
"""Tasks whose data can be mixed, by their names."""


class MixedData(Task):
    """Several files, directories or hub datasets, such as `a.jsonl:0.7,b.jsonl:0.3`.

    Selected by a `task.train` of this form, or by several `--data`. The training rows of the
    sources have the given shares: as many rows are used as that takes without repeating one.
    Metrics are also reported for the validation and test rows of each source.
    """

    name = "mixture"

    def check(self) -> None:
        """Check every source.

        Raises:
            ConfigError: The rows are those of a task that cannot be mixed.
            DataError: A source is missing.
        """
        if self.config.name is not None and self.config.name not in SOURCES:
            raise ConfigError(
                f"task.train = {self.config.train!r} names several sources, which "
                f"task.name = {self.config.name!r} does not read. Remove task.name, or set it to "
                f"{' or '.join(SOURCES)}"
            )
        for task in self._tasks.values():
            task.check()

    def files(self) -> dict[str, Path] | None:
        """Return the files of all sources; None if one is in memory."""
        found: dict[str, Path] = {}
        for source, task in self._tasks.items():
            own = task.files()
            if own is None:
                return None
            found |= {f"{source} {name}": path for name, path in own.items()}
        return found

    def load(self, kind: str, seed: int) -> TaskData:
        """Read and join the sources.

        Raises:
            DataError: A row is invalid, or the sources have different kinds of rows.
        """
        loaded = {name: task.load(kind, seed) for name, task in self._tasks.items()}
        first, *others = loaded.values()
        for other in others:
            if (other.kind, other.classes) != (first.kind, first.classes):
                raise DataError(
                    f"{first.source} is {_shown(first)} and {other.source} {_shown(other)}, which "
                    "cannot be mixed. Give sources of one kind and the same classes"
                )
        train = self._drawn({name: data.train for name, data in loaded.items()})
        validation = {name: data.validation for name, data in loaded.items()}
        tests = {name: data.test for name, data in loaded.items() if data.test is not None}
        splits = {
            "train": _joined(train),
            "validation": self._judged(validation, self.config.validation),
        }
        if tests:
            splits["test"] = self._judged(tests, self.config.test)
        told = (
            f"{data.source} ({len(train[name]):,} of {len(data.train):,} rows)"
            for name, data in loaded.items()
        )
        return TaskData(
            kind=first.kind,
            train=splits["train"],
            validation=splits["validation"],
            test=splits.get("test"),
            classes=first.classes,
            rows_hash=hash_rows(first.kind, first.classes, splits),
            source=", ".join(told),
        )

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        """The task of each source, by a short name."""
        source = SOURCES[self.config.name or "files"]
        shares = data_shares(self.config.train)
        return {
            name: source(self._alone(place), self.kinds, None, self.model_kind, self.model_classes)
            for name, place in zip(short_names([*shares]), shares, strict=True)
        }

    def _alone(self, place: str) -> TaskConfig:
        return self.config.model_copy(update={"train": place})

    def _drawn(self, splits: Mapping[str, Split]) -> dict[str, Split]:
        """Return the training rows of each source: as many as its share allows."""
        weights = data_shares(self.config.train).values()
        total = min(
            len(split) / weight for split, weight in zip(splits.values(), weights, strict=True)
        )
        return {
            name: fewer(split, max(1, round(total * weight)))
            for (name, split), weight in zip(splits.items(), weights, strict=True)
        }

    def _judged(self, splits: Mapping[str, Split], given: str | None) -> Split:
        """Return rows to evaluate on: those of every source, unless one file was given for all."""
        if given is not None and self.config.name != "hub":
            return next(iter(splits.values()))
        return _joined(splits)


def short_names(places: Sequence[str]) -> list[str]:
    """Return a short name for each source: that of its file, if no two are equal."""
    stems = [Path(place).stem if Path(place).suffix else Path(place).name for place in places]
    return stems if len(set(stems)) == len(stems) else list(places)


def _joined(splits: Mapping[str, Split]) -> Split:
    """Return the rows of several sources as one split, with the source of each row."""
    parts = list(splits.values())
    if len({part.chat for part in parts}) > 1:
        raise DataError(
            f"some of {', '.join(splits)} are conversations, and others plain texts. Set "
            "task.chat, or give sources of one kind"
        )
    if parts[0].chat and len({part.target is None for part in parts}) > 1:
        parts = [_as_messages(part) for part in parts]
    made: dict[str, Any] = {}
    for field in fields(Split):
        columns = [getattr(part, field.name) for part in parts]
        if isinstance(columns[0], bool):
            made[field.name] = columns[0]
        elif any(column is not None for column in columns):
            made[field.name] = _column(field.name, columns, parts)
    names = [name for name, part in splits.items() for _ in range(len(part))]
    return Split(**{"source": names} | made)


def _column(name: str, columns: Sequence[Any], parts: Sequence[Split]) -> Sequence[Any]:
    """Return the values of all rows; only some may be missing in some sources."""
    if name not in ("tools", "group", "context") and any(column is None for column in columns):
        raise DataError(
            f"some sources of task.train have a {name} in their rows, and others have none. Give "
            "sources with the same columns"
        )
    pairs = zip(columns, parts, strict=True)
    return joined([[None] * len(part) if column is None else column for column, part in pairs])


def _as_messages(split: Split) -> Split:
    return replace(split, text=spooled(_messages(split)), target=None)


def _messages(split: Split) -> Iterator[list[Message]]:
    """Yield the messages of each row."""
    for start in range(0, len(split), CHUNK):
        part = part_of(split, start, CHUNK)
        yield from (messages_of(part, row) for row in range(len(part)))


def _shown(data: TaskData) -> str:
    classes = f" of {', '.join(data.classes)}" if data.classes else ""
    return f"{data.kind}{classes}"
