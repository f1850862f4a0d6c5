"""Registration of the architectures that plugins describe, with core and with transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from transformers import AutoConfig

from gkd_core.contract.architectures import add_adapter
from gkd_core.errors import PluginError, suggest
from gkd_core.models.sites import Sites

if TYPE_CHECKING:
    from gkd_core.kinds.task_kind import TaskKind
    from gkd_core.plugins import Registry


def register_installed(registry: Registry) -> None:
    """Make the model types of all plugins known; what cannot be registered is left out.

    Args:
        registry: The plugins.
    """
    for adapter in registry.sites:
        try:
            register_architectures([adapter], registry.kinds)
        except Exception as error:
            registry.set_aside(adapter, f"adapter for {', '.join(adapter.families)}", str(error))


def register_architectures(adapters: Iterable[type[Sites]], kinds: Mapping[str, TaskKind]) -> None:
    """Make the model types of adapters known, before any configuration is read.

    Args:
        adapters: Subclasses of `Sites` registered by plugins.
        kinds: Every kind of task by name.

    Raises:
        PluginError: An adapter has a head for an unknown kind of task.
    """
    for adapter in adapters:
        add_adapter(adapter)
        if adapter.config_class is None:
            continue
        AutoConfig.register(adapter.config_class.model_type, adapter.config_class, exist_ok=True)
        for kind, model in adapter.heads.items():
            if kind not in kinds:
                raise PluginError(
                    f"{adapter.__module__}.{adapter.__qualname__} has a head for the unknown kind "
                    f"of task '{kind}'.{suggest(kind, kinds)}"
                )
            kinds[kind].auto.register(adapter.config_class, model, exist_ok=True)
