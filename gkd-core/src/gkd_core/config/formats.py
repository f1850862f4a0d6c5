"""Parsers for TOML, YAML and JSON that also return the line of each key."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from gkd_core.errors import ConfigError

LONGEST = 1_000_000
"""Characters of a file of settings."""

MOST_VALUES = 100_000
"""Values of a YAML document, those repeated by aliases included."""

MOST_PARSED = 5_000_000
"""Characters that are parsed at most to find the lines of keys in TOML."""

DEEPEST = 100
"""Parts of a key."""

HEADING = (
    "# Every setting of the run, and where each came from. `gkd run` with this file repeats it."
)
"""First line of the configuration that gkd writes into the directory of a run."""

SettingKey = tuple[str | int, ...]
"""The location of a value: table names and list indices."""

Lines = dict[SettingKey, int]
"""1-based line of each key in a file."""


def dotted(key: SettingKey) -> str:
    """Return a key in dotted form, as `--set` takes it."""
    return ".".join(map(str, key))


def line_of(key: SettingKey, lines: Lines) -> int | None:
    """Return the line of a key, or of the nearest enclosing table."""
    return next((lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in lines), None)


def toml_value(text: str) -> Any:
    """Parse a TOML value; text that is not one, or has no JSON equivalent, stays a string.

    Raises:
        ConfigError: It is nested too deeply, or has too many digits.
    """
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"--set {text}: the value cannot be read: {error}") from error
    value = table["value"]
    if len(table) > 1 or not isinstance(value, (bool, int, float, str, list, dict)):
        return text
    return value


def _read_toml(text: str, source: str) -> tuple[Any, Lines]:
    if any(_parts_of_key(row) > DEEPEST for row in text.split("\n")):
        raise ConfigError(f"{source}: a key has more than {DEEPEST} parts")
    try:
        return tomllib.loads(text), _toml_lines(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column \d+\)", str(error))
        line = int(place[1]) if place else len(text.splitlines())
        reason = str(error).replace(place[0], "") if place else str(error)
        raise ConfigError(f"{source}:{line}: not valid TOML: {reason}") from error


def _parts_of_key(row: str) -> int:
    """Return about how many parts the longest key in a line of TOML has.

    The parser takes a time that is quadratic in it.
    """
    before = [row] if row.lstrip().startswith("[") else row.split("=")[:-1]
    return max((re.split(r"[,{\[]", part)[-1].count(".") + 1 for part in before), default=0)


def _toml_lines(text: str) -> Lines:
    """Find the line of each key in a valid document, which the parser does not record.

    Statements are parsed one at a time; one that spans several lines becomes valid at its last.
    """
    lines: Lines = {}
    entries: dict[SettingKey, int] = {}
    table: SettingKey = ()
    start, rows, parsed = 0, text.replace("\r\n", "\n").split("\n"), 0
    for end in range(1, len(rows) + 1):
        tried = "\n".join(rows[start:end])
        parsed += len(tried)
        if parsed > MOST_PARSED:
            break  # lines are for messages only
        try:
            statement = tomllib.loads(tried)
        except tomllib.TOMLDecodeError:
            continue
        if rows[start].lstrip().startswith("["):
            table = _open_table(statement, entries)
            lines[table] = start + 1
        for key in _keys(statement, table):
            lines.setdefault(key, start + 1)
        start = end
    return lines


def _open_table(header: dict[str, Any], entries: dict[SettingKey, int]) -> SettingKey:
    """Return the key of the table that a parsed `[header]` or `[[header]]` opens.

    Args:
        header: The parsed header.
        entries: Index of the last entry of each list of tables so far; updated in place.
    """
    key: SettingKey = ()
    node: Any = header
    while isinstance(node, dict) and node:
        name, node = next(iter(node.items()))
        key = (*key, name)
        if isinstance(node, list):
            entries[key] = entries.get(key, -1) + 1
        if key in entries:
            key = (*key, entries[key])
    return key


def _keys(tree: Any, key: SettingKey) -> Iterator[SettingKey]:
    """Yield all keys of a tree below `key`, at every depth."""
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    else:
        return
    for name, inner in items:
        yield (*key, name)
        yield from _keys(inner, (*key, name))


class _YamlLoader(yaml.SafeLoader):
    """A safe loader in which keys are always strings and `1e-5` is a number, as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _read_yaml(text: str, source: str) -> tuple[Any, Lines]:
    try:
        lines = _node_lines(text, source)  # first, because it counts what aliases repeat
        tree = yaml.load(text, Loader=_YamlLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = source if mark is None else f"{source}:{mark.line + 1}"
        raise ConfigError(f"{where}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    except (LookupError, AttributeError) as error:  # from PyYAML, about tags such as `!!int`
        raise ConfigError(f"{source}: not valid YAML: a value is not what its tag says") from error
    return {} if tree is None else tree, lines


def _read_json(text: str, source: str) -> tuple[Any, Lines]:
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source}:{error.lineno}: not valid JSON: {error.msg}") from error
    try:
        # JSON is valid YAML except for tabs, which valid JSON has only between tokens.
        return tree, _node_lines(text.replace("\t", " "), source)
    except yaml.YAMLError:
        return tree, {}


def _node_lines(text: str, source: str) -> Lines:
    """Find the line of each key in a YAML document.

    Raises:
        ConfigError: A key is no name, a table has a key twice, an alias is inside the node that it
            refers to, or there are too many values.
    """
    lines: Lines = {}

    def visit(node: yaml.Node, key: SettingKey, around: tuple[yaml.Node, ...]) -> None:
        for name, first, inner in _parts(node):
            place, where = (*key, name), f"{source}:{first.start_mark.line + 1}"
            if not isinstance(name, str | int):
                raise ConfigError(f"{where}: a key is a list or a table; keys are names")
            if place in lines:
                raise ConfigError(
                    f"{where}: `{dotted(place)}` is set twice, first in line {lines[place]}"
                )
            if inner in around:
                raise ConfigError(
                    f"{where}: `{dotted(place)}` is an alias of a node that contains it"
                )
            lines[place] = first.start_mark.line + 1
            if len(lines) > MOST_VALUES:
                raise ConfigError(f"{source}: there are more than {MOST_VALUES:,} values")
            visit(inner, place, (*around, inner))

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None:
        visit(root, (), (root,))
    return lines


def _parts(node: yaml.Node) -> Iterator[tuple[str | int, yaml.Node, yaml.Node]]:
    """Yield the name, first node and value of each entry of a table or list."""
    if isinstance(node, yaml.MappingNode):
        for name, inner in node.value:
            yield name.value, name, inner
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield index, item, item


Reader = Callable[[str, str], tuple[Any, Lines]]


def _guarded(read: Reader) -> Reader:
    """Return a parser that refuses what Python cannot hold."""

    def guarded(text: str, source: str) -> tuple[Any, Lines]:
        if len(text) > LONGEST:
            raise ConfigError(
                f"{source} has {len(text):,} characters, but settings take at most {LONGEST:,}. "
                "Give rows with --data"
            )
        try:
            return read(text, source)
        except RecursionError as error:
            raise ConfigError(f"{source}: it is nested too deeply") from error
        except ValueError as error:  # digits, dates
            raise ConfigError(f"{source}: a value cannot be read: {error}") from error

    return guarded


READERS: dict[str, Reader] = {
    ".toml": _guarded(_read_toml),
    ".yaml": _guarded(_read_yaml),
    ".yml": _guarded(_read_yaml),
    ".json": _guarded(_read_json),
}
"""Parsers by suffix: they take the text and name of a file, and return the tree and its lines."""
