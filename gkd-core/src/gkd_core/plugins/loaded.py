"""`LoadedPlugins`: the plugins that could be loaded, and what each registers, checked."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pluggy

from gkd_core import __version__, hookspecs
from gkd_core.errors import PluginError
from gkd_core.plugins.contributions import Contribution, items_of, kind_of
from gkd_core.plugins.discovery import check_entry, enabled
from gkd_core.plugins.hook_checks import check_hooks
from gkd_core.plugins.isolation import isolated
from gkd_core.plugins.owners import Owners, described, module_of
from gkd_core.plugins.provenance import CORE, DISABLE, Plugin, PluginWarning, Skipped


class LoadedPlugins:
    """The plugins that could be loaded.

    A plugin that is broken, or the part of it that is, is left out with a warning; everything else
    goes on.

    Attributes:
        manager: pluggy's manager.
        plugins: The plugins in the order of loading, by entry-point name; of two of one name, the
            second has its distribution in its key.
        skipped: What was left out.
        owners: Knows whose code is whose.
        seconds: Time that each plugin took so far to be imported and to say what it provides.
    """

    def __init__(self, found: Iterable[EntryPoint]) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.plugins: dict[str, Plugin] = {}
        self.skipped: list[Skipped] = []
        self.owners = Owners()
        self.seconds: dict[Plugin, float] = {}
        self._modules: dict[str, object] = {}
        chosen = enabled(found)
        versions = {CORE: __version__} | {p.distribution: p.version for p, _ in chosen}
        for plugin, entry in chosen:
            with self._or_skipped(plugin):
                check_entry(entry, versions)
                self._load(plugin, entry)
        # pluggy calls the last registered first, so that registering from Z to A calls A to Z.
        for key, module in reversed(self._modules.items()):
            with self._or_skipped(self.plugins[key]):
                self.manager.register(module, key)

    def named(self, kind: Contribution) -> dict[str, Any]:
        """Return everything of a kind that plugins register, by name, sorted."""
        claims: dict[str, list[tuple[Plugin, Any]]] = {}
        for plugin, item in self._registered(kind.hook):
            with self._or_skipped(plugin, _part(kind, item)):
                if kind_of(kind.hook, item) is kind:
                    claims.setdefault(kind.checked_name(item), []).append((plugin, item))
        settled = {
            name: self._settled(f"{kind.noun} '{name}'", claimed)
            for name, claimed in sorted(claims.items())
        }
        return {name: item for name, item in settled.items() if item is not None}

    def skip(self, plugin: Plugin, reason: str, part: str = "") -> None:
        """Leave something out, with a warning.

        Args:
            plugin: The plugin that it is of.
            reason: What is wrong with it.
            part: What it is; empty for the whole plugin.
        """
        skipped = Skipped(plugin, reason.rstrip("."), part)
        if skipped not in self.skipped:
            self.skipped.append(skipped)
            lost = "" if part else "; what it provides is unavailable"
            warnings.warn(f"{skipped}{lost}", PluginWarning, stacklevel=2)

    def _load(self, plugin: Plugin, entry: EntryPoint) -> None:
        self.owners.add_plugin(plugin, entry.value.partition(":")[0])
        with self._watched(plugin):
            module: object = entry.load()
        check_hooks(module)
        for key, other in self._modules.items():
            if module is other:
                raise PluginError(f"plugin {self.plugins[key]} is the same module")
        taken = plugin.name in self.plugins
        key = f"{plugin.name} of {plugin.distribution}" if taken else plugin.name
        self._modules[key], self.plugins[key] = module, plugin
        self.owners.add_plugin(plugin, module_of(module))

    def _registered(self, hook: str) -> Iterator[tuple[Plugin, object]]:
        """Yield what each plugin returns from a registration hook."""
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            plugin = self.plugins[implementation.plugin_name]
            items: list[object] = []
            with self._or_skipped(plugin, hook), self._watched(plugin):
                items = items_of(hook, implementation.function())
            yield from ((plugin, item) for item in items)

    def _settled(self, part: str, claimed: Sequence[tuple[Plugin, Any]]) -> Any | None:
        """Return the object with a name; None if several plugins, but not core, claim it."""
        core_first = sorted(claimed, key=lambda claim: not claim[0].is_core)
        (plugin, item), *others = core_first
        rivals = [other for other, its in others if its is not item]
        for other, its in others:
            if its is item:
                self.skip(other, f"plugin {plugin} registers it already", f"the same {part}")
            else:
                self.skip(other, _clash(other, plugin), part)
        if rivals and not plugin.is_core:
            self.skip(plugin, _clash(plugin, rivals[0]), part)
            return None
        self.owners.add(plugin, item)
        return item

    @contextmanager
    def _or_skipped(self, plugin: Plugin, part: str = "") -> Iterator[None]:
        """Leave out a plugin, or a part of it, whose code raises anything but an interrupt."""
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            blame = None if isinstance(error, PluginError) else self.owners.blame(error)
            place = "" if blame is None else f" ({blame.place})"
            self.skip(plugin, f"{described(error)}{place}", part)

    @contextmanager
    def _watched(self, plugin: Plugin) -> Iterator[None]:
        """Time code of a plugin, and undo what it does to the process."""
        start = time.perf_counter()
        try:
            with isolated(lambda what: self._say_changed(plugin, what)):
                yield
        finally:
            took = time.perf_counter() - start
            self.seconds[plugin] = self.seconds.get(plugin, 0.0) + took

    def _say_changed(self, plugin: Plugin, what: str) -> None:
        message = f"plugin {plugin} changed {what} when it was loaded; gkd has set it back"
        warnings.warn(message, PluginWarning, stacklevel=2)


def _clash(plugin: Plugin, other: Plugin) -> str:
    if plugin == other:
        return "the plugin has two of this name; rename one"
    if other.is_core:
        return f"plugin {other} provides one, which no other can replace; rename it"
    return f"plugin {other} provides one, too. Uninstall one of them, or set {DISABLE} to its name"


def _part(kind: Contribution, item: object) -> str:
    """Return the name of an object that a plugin registers, without running its code."""
    name = item.stem if isinstance(item, Path) else inspect.getattr_static(item, "name", None)
    if isinstance(name, str):
        return f"{kind.noun} '{name}'"
    return f"one {kind.noun}"
