"""The adapters of architectures that plugins describe, by Hugging Face model type."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gkd_core.models.sites import Sites

_adapters: dict[str, type[Sites]] = {}


def add_adapter(adapter: type[Sites]) -> None:
    """Register an adapter for the model types that it lists, in this process."""
    for family in adapter.families:
        _adapters[family] = adapter


def adapter_of(family: str) -> type[Sites] | None:
    """Return the adapter that describes a model type, or None if core knows it by itself."""
    return _adapters.get(family)
