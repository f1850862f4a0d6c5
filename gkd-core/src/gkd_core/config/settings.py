"""Sources of settings: TOML, YAML and JSON files, `--set key=value` and named flags.

Every source becomes a list of `Setting`s in the order written, each with its origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from gkd_core.config.formats import (
    DEEPEST,
    HEADING,
    READERS,
    SettingKey,
    dotted,
    line_of,
    toml_value,
)
from gkd_core.config.renamed import renew
from gkd_core.errors import ConfigError, suggest


class Level(IntEnum):
    """The kind of a source; higher ones win."""

    DEFAULT = 0
    TASK = 1
    PROCEDURE = 2
    RECIPE = 3
    FILE = 4
    COMMAND_LINE = 5


@dataclass(frozen=True)
class Origin:
    """The place where a value was given.

    Attributes:
        level: The kind of source.
        source: The file, recipe or flag.
        line: 1-based line in a file.
    """

    level: Level
    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


DEFAULT = Origin(Level.DEFAULT, "default")


def origin_of(name: str, origins: Mapping[str, Origin]) -> Origin:
    """Return the origin of a dotted key, or of the first of its subkeys that has one."""
    parts = (origin for key, origin in origins.items() if key.startswith(f"{name}."))
    return origins.get(name) or next(parts, DEFAULT)


@dataclass(frozen=True)
class Setting:
    """One value as written.

    Attributes:
        key: Its key as written, with list entries by index or name.
        value: A scalar, a list, or an empty table.
        origin: Where it was given.
        stage: The stage that it applies to; empty for the run.
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
        ConfigError: The file cannot be read, or has a syntax error; the message names the line.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(
            f"{path}: unknown kind of configuration file {path.suffix!r}; the name must end in "
            f"{', '.join(READERS)}"
        )
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe may never end
        raise ConfigError(f"{path}: cannot read the configuration file: it is not a file")
    try:
        # utf-8-sig drops the byte order mark that some editors write.
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
    """Return the settings in nested dictionaries, all with the same origin."""
    return list(_flatten((), dict(table), lambda key: origin))


def read_assignment(text: str) -> list[Setting]:
    """Parse an argument of `--set`: `key=value`, with a TOML value or bare text.

    Raises:
        ConfigError: The key or `=` is missing.
    """
    name, equals, value = text.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        raise ConfigError(
            f"--set {text}: expected key=value, such as `--set training.lr=1e-5` or "
            "`--set method=pkd+soft`"
        )
    if len(key) > DEEPEST:
        raise ConfigError(f"--set {text}: the key has more than {DEEPEST} parts")
    origin = Origin(Level.COMMAND_LINE, "--set")
    return list(_flatten(key, toml_value(value.strip()), lambda key: origin))


def read_flag(name: str, value: Any, flag: str) -> list[Setting]:
    """Return the settings of a named command-line flag.

    Args:
        name: The dotted key.
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
    """Yield the leaves. A list of tables starts with an empty list, which clears old entries."""
    if isinstance(value, dict) and (value or not key):
        for name, inner in value.items():
            yield from _flatten((*key, str(name)), inner, origin)
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        yield Setting(key, [], origin(key))
        for index, item in enumerate(value):
            yield from _flatten((*key, index), item, origin)
    else:
        yield Setting(key, value, origin(key))
