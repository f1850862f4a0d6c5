"""`Plugin`: the distribution and version that something comes from."""

from __future__ import annotations

from dataclasses import dataclass

DISABLE = "GKD_DISABLE_PLUGINS"


@dataclass(frozen=True)
class Plugin:
    """Where a plugin comes from.

    Attributes:
        name: Name of its entry point in group `gkd`.
        distribution: Installed package that ships it.
        version: Version of that package.
    """

    name: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"'{self.name}' ({self.distribution} {self.version})"


@dataclass(frozen=True)
class Skipped:
    """A plugin that could not be loaded, and why."""

    plugin: Plugin
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.plugin} was skipped: {self.reason}"
