"""Bad values by kind, and the settings and options that take them, as gkd itself declares them."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel

from gkd_core.cli import BUILT_IN, gkd
from gkd_core.cli.plan import FigureFile
from gkd_core.config.schema import RunConfig
from gkd_core.contract.schedule import Schedule

LONG = "x" * 5000
ESCAPE = "\x1b[31mred\x07"
ANYWHERE = {"list": "[[1]]", "table": "{a = 1}", "escape": ESCAPE, "long": LONG}
NUMBERS = {
    **ANYWHERE,
    "word": "fast",
    "empty": '""',
    "negative": "-1",
    "nan": "nan",
    "infinite": "inf",
    "minus infinite": "-inf",
    "overflow": "1e999",
    "many digits": "9" * 5000,
    "digits of another script": "\u0663",
    "true": "true",
    "date": "2026-01-02",
    "expression": "1+1",
}
BOOLEANS = {
    **ANYWHERE,
    "word": "maybe",
    "empty": '""',
    "number": "2",
    "nan": "nan",
    "date": "2026-01-02",
}
CHOICES = {**ANYWHERE, "unknown": "nope", "number": "77", "empty": '""', "true": "true"}
TEXTS = {"list": "[[1]]", "table": "{a = 1}", "true": "true", "number": "1.5", "nan": "nan"}
LISTS = {**ANYWHERE, "number": "7", "date": "2026-01-02", "true": "true"}
TABLES = {"list": "[[1]]", "number": "7", "text": "nope", "true": "true", "long": LONG}
PLACES = {
    "long": LONG,
    "long parts": "/".join(["d" * 300] * 20),
    "unknown user": "~nosuchuser/x",
    "zero byte": '"a\\u0000b"',
    "escape": ESCAPE,
    "empty": '""',
    "folder": "/",
    "below a file": "/dev/null/x",
}


PLACE_SETTINGS = (
    *("teacher.model", "student.model", "task.train", "task.validation", "task.test"),
    "output.dir",
)
"""Settings that name files."""


def settings(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, dict]]:
    """Yield every setting with the bad values of its kind, by the name of what is bad."""
    for name, field in model.model_fields.items():
        key = "teacher" if name == "teachers" else f"{prefix}{name}"
        if field.exclude or name == "stages":
            continue
        parts = list(_parts(field.annotation))
        inner = next((part for part in parts if _is_model(part)), None)
        if inner is None:
            places = PLACES if key in PLACE_SETTINGS else {}
            yield key, {**_values(parts), **places}
        else:
            yield from settings(inner, f"{key}.")


def _is_model(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield the alternatives of an annotation; of a list of models, the model."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    elif origin is list and _is_model(get_args(annotation)[0]):
        yield get_args(annotation)[0]
    elif annotation is not type(None):
        yield annotation


def _values(parts: list[Any]) -> dict[str, str]:
    origins = {get_origin(part) or part for part in parts}
    if origins & {list, tuple}:
        return TEXTS if str in origins else LISTS
    for kinds, values in (
        ({dict}, TABLES),
        ({bool}, BOOLEANS),
        ({int, float, Schedule}, NUMBERS),
        ({Literal}, CHOICES),
        ({str}, TEXTS),
    ):
        if origins & kinds:
            return values
    raise AssertionError(f"bad values of {parts} are not known")


def options() -> Iterator[tuple[tuple[str, ...], str, dict[str, str]]]:
    """Yield every option of every command that takes a value: command, option, bad values."""
    with click.Context(gkd) as context:
        for name in sorted(BUILT_IN):
            command = gkd.get_command(context, name)
            assert command is not None
            yield from _options((name,), command)


def _options(path: tuple[str, ...], command: click.Command) -> Iterator[Any]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _options((*path, name), inner)
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.is_flag and not parameter.count:
            values = _values_of(parameter.type)
            if values:
                yield path, parameter.opts[0], values


def _values_of(kind: click.ParamType) -> dict[str, str]:
    if isinstance(kind, click.Choice):
        return CHOICES
    if kind is click.STRING:
        return {}
    if isinstance(kind, (click.Path, FigureFile)):
        return {name: value for name, value in PLACES.items() if name in ("long", "long parts")}
    return NUMBERS
