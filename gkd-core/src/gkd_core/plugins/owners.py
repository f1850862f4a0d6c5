"""`Owners`: which plugin a class, a function or an error belongs to."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

from gkd_core.errors import GkdError
from gkd_core.plugins.provenance import Plugin

CORE = "gkd_core"


@dataclass(frozen=True)
class Blame:
    """An error that the code of a plugin has raised.

    Attributes:
        plugin: The plugin.
        error: The error.
        place: File, line and function of the plugin in which it was raised.
    """

    plugin: Plugin
    error: BaseException
    place: str

    def __str__(self) -> str:
        return f"plugin {self.plugin} raised {described(self.error)} ({self.place})"


class Owners:
    """The plugins that code belongs to."""

    def __init__(self) -> None:
        self._objects: dict[int, Plugin] = {}
        self._packages: dict[str, Plugin] = {}

    def add_plugin(self, plugin: Plugin, module: object) -> None:
        """Let the package of a plugin's module, or the module itself, belong to the plugin."""
        name = _module_of(module)
        self._packages[name] = plugin
        self._packages.setdefault(_own_package(name), plugin)

    def add(self, plugin: Plugin, item: object) -> None:
        """Let something that a plugin has registered belong to it, wherever its code is."""
        self._objects[id(item)] = plugin

    def of(self, thing: object) -> Plugin | None:
        """Return the plugin that a class, an object, a function or a module belongs to.

        Args:
            thing: An object belongs to the plugin of its class.
        """
        known = self._objects.get(id(thing)) or self._objects.get(id(type(thing)))
        return known or self._of_module(_module_of(thing))

    def blame(self, error: BaseException) -> Blame | None:
        """Return whose code raised an error, or called what raised it; None if it was not a plugin.

        The innermost code of a plugin counts. Core is no plugin here.
        """
        for cause in _causes(error):
            for frame, line in reversed(list(traceback.walk_tb(cause.__traceback__))):
                plugin = self._of_module(str(frame.f_globals.get("__name__")))
                if plugin is not None:
                    code = frame.f_code
                    place = f"{Path(code.co_filename).name}, line {line}, in {code.co_name}"
                    return Blame(plugin, cause, place)
        return None

    def _of_module(self, name: str) -> Plugin | None:
        parts = name.split(".")
        if parts[0] == CORE:
            return None
        packages = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        found = next((self._packages[p] for p in packages if p in self._packages), None)
        return found or self._of_distribution(parts[0])

    def _of_distribution(self, package: str) -> Plugin | None:
        """Return the plugin of a distribution that installs several packages or modules."""
        names = _distributions().get(package, ())
        return next((p for p in self._packages.values() if p.distribution in names), None)


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def described(error: BaseException) -> str:
    """Return the type and the message of an error, on one line."""
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = "<its message cannot be read>"
    if isinstance(error, GkdError):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _module_of(thing: object) -> str:
    name = getattr(thing, "__name__", "") if _is_module(thing) else None
    return str(name or getattr(thing, "__module__", None) or type(thing).__module__)


def _is_module(thing: object) -> bool:
    return isinstance(thing, type(sys))


def _own_package(name: str) -> str:
    """Return the outermost package of a module that is not a namespace, which others share."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        package = ".".join(parts[:end])
        if getattr(sys.modules.get(package), "__file__", None) is not None:
            return package
    return name


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and what it was raised from."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__
