"""Plugins: what is installed, what each provides, and which of them raised an error."""

from gkd_core.plugins.owners import Blame
from gkd_core.plugins.provenance import DISABLE, Plugin, PluginWarning
from gkd_core.plugins.registry import Registry, ask, registry

__all__ = ["DISABLE", "Blame", "Plugin", "PluginWarning", "Registry", "ask", "registry"]
