"""`option_values`: each option of a method at its choices and bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError


def option_values(options: type[BaseModel]) -> Iterator[dict[str, Any]]:
    """Yield one option at a time: every choice, both booleans, None, and the bounds of numbers.

    Left out are defaults, values that need other options too, and bounds that a fraction may not
    reach.
    """
    for name, field in options.model_fields.items():
        for value in dict.fromkeys(_values(field.annotation, field.metadata)):
            if value == field.default or not _is_valid(options, {name: value}):
                continue
            yield {name: value}


def _values(kind: Any, limits: Sequence[Any]) -> Iterator[Any]:
    """Yield the choices and bounds of a type whose fields have limits such as `Ge(0)`."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        yield from parts
    elif origin is Annotated:
        yield from _values(parts[0], parts[1:])
    elif origin in (Union, UnionType):
        for part in parts:
            yield from _values(part, limits)
    elif kind is NoneType:
        yield None
    elif kind is bool:
        yield from (False, True)
    elif kind in (int, float):
        yield from _bounds(kind, limits)


def _bounds(kind: type[int] | type[float], limits: Sequence[Any]) -> Iterator[int | float]:
    names = ("ge", "le", "gt", "lt")
    found = {name: getattr(one, name) for one in limits for name in names if hasattr(one, name)}
    yield from (kind(found[name]) for name in ("ge", "le") if name in found)
    if kind is int:
        yield from (found[name] + step for name, step in (("gt", 1), ("lt", -1)) if name in found)


def _is_valid(options: type[BaseModel], values: dict[str, Any]) -> bool:
    try:
        options(**values)
    except ValidationError:
        return False
    return True
