"""Where settings come from: TOML, YAML and JSON files, `--set key=value`, named flags.

Every source becomes a list of `Setting`s in the order of writing, each with its origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from gkd_core.config.formats import HEADING, READERS, SettingKey, dotted, line_of, toml_value
from gkd_core.config.renamed import renew
from gkd_core.errors import ConfigError, suggest


class Level(IntEnum):
    """Kinds of source; the higher one wins."""

    DEFAULT = 0
    TASK = 1
    PROCEDURE = 2
    RECIPE = 3
    FILE = 4
    COMMAND_LINE = 5


@dataclass(frozen=True)
class Origin:
    """Where a value was given.

    Attributes:
        level: The kind of source.
        source: The file, the recipe, or the flag.
        line: 1-based line in a file.
    """

    level: Level
    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


DEFAULT = Origin(Level.DEFAULT, "default")


def origin_of(name: str, origins: Mapping[str, Origin]) -> Origin:
    """Return the origin of a dotted key, or of the first part of its value that has one."""
    parts = (origin for key, origin in origins.items() if key.startswith(f"{name}."))
    return origins.get(name) or next(parts, DEFAULT)


@dataclass(frozen=True)
class Setting:
    """One value as it was written.

    Attributes:
        key: Where it belongs, as written: list entries by index or name.
        value: A scalar or a list, or an empty table.
        origin: Where it was given.
        stage: The stage it was given for; empty for the run.
    """

    key: SettingKey
    value: Any
    origin: Origin
    stage: str = ""

    def __str__(self) -> str:
        return dotted(("stages", self.stage, *self.key) if self.stage else self.key)


def read_file(path: Path, level: Level = Level.FILE) -> list[Setting]:
    """Read the settings of a TOML, YAML or JSON file.

    Raises:
        ConfigError: The file cannot be read, or its syntax is wrong; says the line.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(
            f"{path}: unknown kind of configuration file {path.suffix!r}; the name must end in "
            f"{', '.join(READERS)}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        tree, lines = reader(text, str(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the configuration file: {error.strerror}.{_nearest(path)}"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: a configuration file must be UTF-8 text: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a configuration file must hold settings, got {tree!r}")
    if level is Level.RECIPE:
        return read_table(tree, Origin(level, f"recipe {path.stem}"))
    settings = list(_flatten((), tree, lambda key: Origin(level, str(path), line_of(key, lines))))
    if text.startswith(HEADING):  # what an earlier version wrote goes on
        settings = [replace(setting, key=renew(setting.key)) for setting in settings]
    return settings


def read_table(table: Mapping[str, Any], origin: Origin) -> list[Setting]:
    """Return the settings of nested dictionaries, all of one origin."""
    return list(_flatten((), dict(table), lambda key: origin))


def read_assignment(text: str) -> list[Setting]:
    """Read the argument of `--set`: `key=value`, the value in TOML or as bare text.

    Raises:
        ConfigError: There is no key or no `=`.
    """
    name, equals, value = text.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        raise ConfigError(
            f"--set {text}: expected key=value, such as `--set training.lr=1e-5` or "
            "`--set method=pkd+soft`"
        )
    origin = Origin(Level.COMMAND_LINE, "--set")
    return list(_flatten(key, toml_value(value.strip()), lambda key: origin))


def read_flag(name: str, value: Any, flag: str) -> list[Setting]:
    """Return the setting of a named flag of the command line.

    Args:
        name: The setting, dotted.
        value: Its value.
        flag: The flag as typed, such as `--method`.
    """
    value = list(value) if isinstance(value, tuple) else value
    origin = Origin(Level.COMMAND_LINE, flag)
    return list(_flatten(tuple(name.split(".")), value, lambda key: origin))


def _nearest(path: Path) -> str:
    there = path.parent.iterdir() if path.parent.is_dir() and not path.exists() else ()
    return suggest(path.name, (entry.name for entry in there))


def _flatten(
    key: SettingKey, value: Any, origin: Callable[[SettingKey], Origin]
) -> Iterator[Setting]:
    """Yield the leaves. A list of tables starts with an empty list, which clears what was there."""
    if isinstance(value, dict) and (value or not key):
        for name, inner in value.items():
            yield from _flatten((*key, str(name)), inner, origin)
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        yield Setting(key, [], origin(key))
        for index, item in enumerate(value):
            yield from _flatten((*key, index), item, origin)
    else:
        yield Setting(key, value, origin(key))
