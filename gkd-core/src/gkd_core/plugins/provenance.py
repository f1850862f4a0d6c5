"""`Plugin`: the distribution and version that something comes from."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint

DISABLE = "GKD_DISABLE_PLUGINS"

CORE = "gkd-core"
"""The distribution whose names no other plugin can take."""


class PluginWarning(UserWarning):
    """Something is wrong with a plugin, and gkd goes on without it."""


@dataclass(frozen=True)
class Plugin:
    """The origin of a plugin.

    Attributes:
        name: Name of its entry point in group `gkd`.
        distribution: Installed package that ships it.
        version: Version of that package.
    """

    name: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"'{self.name}' ({self.release})"

    @property
    def release(self) -> str:
        """Its distribution and version, as in `gkd-core 0.2.0`."""
        return f"{self.distribution} {self.version}"

    @property
    def is_core(self) -> bool:
        """Whether it is what core itself provides."""
        return self.distribution == CORE


@dataclass(frozen=True)
class Skipped:
    """A plugin, or something of it, that is not used, and why.

    Attributes:
        plugin: The plugin.
        reason: What is wrong.
        part: What of it is not used, such as `method 'training'`; empty for the whole plugin.
    """

    plugin: Plugin
    reason: str
    part: str = ""

    def __str__(self) -> str:
        of = f"{self.part} of " if self.part else ""
        return f"{of}plugin {self.plugin} was skipped: {self.reason}"


def provenance(entry: EntryPoint) -> Plugin:
    """Return the origin of the plugin of an entry point, as far as it can be read."""
    try:
        assert entry.dist is not None
        metadata = entry.dist.metadata
        name, version = metadata["Name"], metadata["Version"]
    except Exception:
        name, version = None, None
    return Plugin(entry.name, name or entry.value, version or "unknown version")
