"""`Owners`: which plugin a class, a function or an error belongs to."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

from gkd_core.errors import GkdError
from gkd_core.plugins.provenance import Plugin

CORE_PACKAGE = "gkd_core"


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
        self._objects: dict[int, tuple[Plugin, object]] = {}
        self._packages: dict[str, Plugin] = {}
        self._shipped: dict[str, frozenset[str]] = {}

    def add_plugin(self, plugin: Plugin, module: str) -> None:
        """Assign a module, and its whole package once it is imported, to a plugin."""
        for name in (module, _own_package(module)):
            self._packages.setdefault(name, plugin)

    def add(self, plugin: Plugin, item: object) -> None:
        """Assign an object to the plugin that registered it, wherever its code is."""
        self._objects[id(item)] = (plugin, item)  # kept alive: its id stays its own

    def of(self, thing: object) -> Plugin | None:
        """Return the plugin that a class, an object, a function or a module belongs to.

        Args:
            thing: An object belongs to the plugin of its class.
        """
        for known in (thing, type(thing)):
            if id(known) in self._objects:
                return self._objects[id(known)][0]
        module = module_of(thing)
        return self._of_module(module) or self._of_distribution(module)

    def blame(self, error: BaseException) -> Blame | None:
        """Return whose code raised an error, or called what raised it; None if it was not a plugin.

        The innermost code of a plugin counts. Core is no plugin here.
        """
        for owner in (self._of_module, self._of_distribution):
            for module, cause, place in _places(error):
                plugin = owner(module)
                if plugin is not None:
                    return Blame(plugin, cause, place)
        return None

    def _of_module(self, name: str) -> Plugin | None:
        parts = [] if is_core_module(name) else name.split(".")
        packages = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((self._packages[p] for p in packages if p in self._packages), None)

    def _of_distribution(self, name: str) -> Plugin | None:
        """Return the plugin of the distribution that a module is of, if it has several packages."""
        if is_core_module(name):
            return None
        package = name.partition(".")[0]
        plugins = self._packages.values()
        return next((p for p in plugins if package in self._shipped_by(p.distribution)), None)

    def _shipped_by(self, distribution: str) -> frozenset[str]:
        if distribution not in self._shipped:
            self._shipped[distribution] = _packages_of(distribution)
        return self._shipped[distribution]


def is_core_module(name: str) -> bool:
    """Return whether a module is of core itself."""
    return name.partition(".")[0] == CORE_PACKAGE


def _packages_of(name: str) -> frozenset[str]:
    """Return the outermost packages and modules of a distribution.

    `packages_distributions` tells the same, but lists the files of all that is installed.
    """
    try:
        installed = distribution(name)
    except (PackageNotFoundError, ValueError):
        return frozenset()
    declared = (installed.read_text("top_level.txt") or "").split()
    listed = (file.parts for file in installed.files or ())
    inferred = (parts[0] if parts[1:] else inspect.getmodulename(parts[0]) for parts in listed)
    return frozenset(declared or filter(None, inferred))


def described(error: BaseException) -> str:
    """Return the type and the message of an error, on one line."""
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = "<its message cannot be read>"
    if isinstance(error, GkdError):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def module_of(thing: object) -> str:
    """Return the name of the module that something is defined in; of a module, its own."""
    if isinstance(thing, ModuleType):
        return thing.__name__
    return str(getattr(thing, "__module__", None) or type(thing).__module__)


def _own_package(name: str) -> str:
    """Return the outermost package of a module that is not a namespace, which others share."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        package = ".".join(parts[:end])
        if getattr(sys.modules.get(package), "__file__", None) is not None:
            return package
    return name


def _places(error: BaseException) -> Iterator[tuple[str, BaseException, str]]:
    """Yield the module and the place of each frame, innermost first, also of what caused an error.

    With each comes the error that was raised there.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        for frame, line in reversed(list(traceback.walk_tb(cause.__traceback__))):
            code = frame.f_code
            place = f"{Path(code.co_filename).name}, line {line}, in {code.co_name}"
            yield str(frame.f_globals.get("__name__")), cause, place
        cause = cause.__cause__
