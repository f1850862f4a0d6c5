"""Discovery of plugins: what is installed, and whether it fits this gkd."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, distributions, entry_points

from gkd_core import hookspecs
from gkd_core.errors import PluginError
from gkd_core.plugins.owners import described
from gkd_core.plugins.provenance import DISABLE, Plugin, PluginWarning, provenance

MODULE = re.compile(r"[\w.]+(\s*:\s*[\w.]+)?(\s*\[.*\])?")
NAME = re.compile(r"[\w.-]+")


def installed() -> Iterable[EntryPoint]:
    """Return the entry points of all plugins; of a distribution that has unreadable ones, none."""
    try:
        return entry_points(group=hookspecs.PROJECT)
    except Exception:
        return list(_one_by_one())


def _one_by_one() -> Iterator[EntryPoint]:
    seen: set[str] = set()
    for distribution in distributions():
        name = ""
        try:
            name = distribution.name
            found = distribution.entry_points.select(group=hookspecs.PROJECT)
        except Exception as error:
            warnings.warn(
                f"the entry points of {name or distribution} cannot be read, so it provides no "
                f"plugin: {described(error)}",
                PluginWarning,
                stacklevel=2,
            )
            continue
        if name not in seen:
            yield from found
        seen.add(name)


def enabled(found: Iterable[EntryPoint]) -> list[tuple[Plugin, EntryPoint]]:
    """Return the plugins to load, sorted by name.

    Left out is what `GKD_DISABLE_PLUGINS` names, by plugin or distribution, comma-separated.
    """
    disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",")}
    plugins = [(provenance(entry), entry) for entry in found]
    return sorted(
        ((p, e) for p, e in plugins if not disabled & {p.name, p.distribution}),
        key=lambda pair: (pair[0].name, pair[0].distribution),
    )


def check_entry(entry: EntryPoint, versions: Mapping[str, str]) -> None:
    """Reject a plugin whose entry point or requirements show that it cannot be loaded.

    Args:
        entry: The entry point.
        versions: The version of each distribution with plugins, core too, by its name.

    Raises:
        PluginError: It names no module, or requires other versions of gkd or of other plugins.
    """
    if not MODULE.fullmatch(entry.value):
        raise PluginError(f"its entry point '{entry.value}' is not the name of a module")
    installed = {_canonical(name): version for name, version in versions.items()}
    for line in (entry.dist.requires if entry.dist is not None else None) or ():
        name = NAME.match(line)
        version = installed.get(_canonical(name[0])) if name is not None else None
        if version is not None:
            _check_requirement(line, version)


def _check_requirement(line: str, version: str) -> None:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        needed = Requirement(line)
    except InvalidRequirement as error:
        raise PluginError(f"its requirement '{line}' is not valid") from error
    if needed.marker is not None and not needed.marker.evaluate():
        return
    if not needed.specifier.contains(version, prereleases=True):
        raise PluginError(
            f"it requires {needed.name}{needed.specifier}, but version {version} is installed. "
            "Install compatible versions"
        )


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
