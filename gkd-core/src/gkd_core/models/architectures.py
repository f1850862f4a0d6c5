"""Registration of the architectures that plugins describe, with core and with transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from transformers import AutoConfig

from gkd_core.contract.architectures import add_adapter
from gkd_core.kinds.task_kind import TaskKind
from gkd_core.models.sites import Sites


def register_architectures(adapters: Iterable[type[Sites]], kinds: Mapping[str, TaskKind]) -> None:
    """Make the model types of adapters known, before any configuration is read.

    Args:
        adapters: Subclasses of `Sites` registered by plugins.
        kinds: The registered kinds of task by name.
    """
    for adapter in adapters:
        add_adapter(adapter)
        if adapter.config_class is None:
            continue
        AutoConfig.register(adapter.config_class.model_type, adapter.config_class, exist_ok=True)
        for kind, model in adapter.heads.items():
            kinds[kind].auto.register(adapter.config_class, model, exist_ok=True)
