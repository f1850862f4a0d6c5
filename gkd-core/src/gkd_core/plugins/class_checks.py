"""Checks of a class that a plugin registers: what core will ask of it, it has."""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Callable, Iterator
from functools import partialmethod
from typing import Any

from gkd_core.errors import PluginError
from gkd_core.plugins.owners import is_core_module

DECLARED = re.compile(r"ClassVar\[(?P<type>.*)\]")

TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("True or False", lambda value: isinstance(value, bool)),
    "int": ("a whole number", lambda value: isinstance(value, int)),
    "str": ("text", lambda value: isinstance(value, str)),
    "tuple[str, ...]": (
        "a tuple of texts",
        lambda value: isinstance(value, tuple) and all(isinstance(part, str) for part in value),
    ),
}
"""The check of an attribute that core declares as a simple type, by the declaration."""


def check_class(cls: type) -> None:
    """Reject a class that core could not use.

    Raises:
        PluginError: It lacks what its base class leaves to it, or has something else in its place.
    """
    problems = [*_lacking(cls), *_mistyped(cls), *_misfits(cls)]
    if problems:
        raise PluginError(f"class {called(cls)}: {'; '.join(problems)}")


def called(cls: type) -> str:
    """Return the full name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _bases(cls: type) -> list[type]:
    """Return its base classes in core, whose declarations it must follow."""
    return [base for base in cls.__mro__ if is_core_module(base.__module__)]


def _declared(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the class attributes that base classes declare, with their types."""
    for base in _bases(cls):
        for name, annotation in inspect.get_annotations(base).items():
            found = DECLARED.fullmatch(str(annotation))
            if found is not None:
                yield name, found["type"]


def _lacking(cls: type) -> Iterator[str]:
    """Yield what its base classes only declare."""
    names = [name for name, _ in _declared(cls) if not hasattr(cls, name)]
    for name in dir(cls):
        if getattr(getattr(cls, name, None), "__isabstractmethod__", False):
            names.append(name)
    if names:
        yield f"it lacks {', '.join(f'`{name}`' for name in dict.fromkeys(names))}"


def _mistyped(cls: type) -> Iterator[str]:
    for name, declared in _declared(cls):
        if declared in TYPES and hasattr(cls, name):
            wanted, fits = TYPES[declared]
            value = getattr(cls, name)
            if not fits(value):
                yield f"`{name}` must be {wanted}, not {reprlib.repr(value)}"


def _misfits(cls: type) -> Iterator[str]:
    """Yield its methods that cannot be called as core calls those of the base classes."""
    for name, declared in _methods(cls).items():
        given = inspect.getattr_static(cls, name)
        if given is declared or isinstance(given, (staticmethod, classmethod, partialmethod)):
            continue
        if not inspect.isfunction(given):
            yield f"`{name}` must be a method, not {reprlib.repr(given)}"
        elif not _accepts(given, declared):
            yield f"`{name}` must take {', '.join(inspect.signature(declared).parameters)}"


def _methods(cls: type) -> dict[str, Callable[..., Any]]:
    """Return the methods of its base classes that core calls, as the nearest one declares them."""
    found: dict[str, Callable[..., Any]] = {}
    for base in reversed(_bases(cls)):
        found |= {name: value for name, value in vars(base).items() if inspect.isfunction(value)}
    return {n: value for n, value in found.items() if n == "__init__" or not n.startswith("_")}


def _accepts(given: Callable[..., Any], declared: Callable[..., Any]) -> bool:
    """Return whether a function can be called with the arguments of another."""
    parameters = inspect.signature(declared).parameters.values()
    placed = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    try:
        inspect.signature(given).bind(*placed, **named)
    except TypeError:
        return False
    return True
