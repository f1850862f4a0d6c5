"""Checks that models can be divided over a tensor group."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from gkd_core.contract.model_info import ModelInfo
from gkd_core.distributed.layout import Layout, divisors, listed
from gkd_core.errors import ConfigError
from gkd_core.models.slicing.widths import is_sliced
from gkd_core.parallel.tp_plans import KEYS_AND_VALUES, find_plan

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_divisible(config: PretrainedConfig, degree: int, origin: str) -> None:
    """Reject a model that cannot be divided over a tensor group, before any weight is read.

    The vocabulary can always be divided: its last shards are padded.

    Args:
        config: The model's configuration.
        degree: Number of processes that share one copy of it.
        origin: Setting that named the degree.

    Raises:
        ConfigError: There is no plan for the architecture, or a size is not divisible.
    """
    if degree == 1:
        return
    if is_sliced(config):
        raise ConfigError(
            f"{origin} = {degree}: the blocks of this {config.model_type} model differ in width "
            "(gkd prune made them so) and cannot be divided evenly; prune it with --even"
        )
    plan = find_plan(config)
    info = ModelInfo.read("", config, 0)
    repeats = any(name.endswith(KEYS_AND_VALUES) for name in plan)
    problem = _misfit(info, degree, repeats)
    if problem:
        fitting = [d for d in divisors(info.heads) if not _misfit(info, d, repeats)]
        raise ConfigError(
            f"{origin} = {degree}: {problem} of this {info.family} model; choose one of "
            f"{listed(fitting)}"
        )


def check_megatron(layout: Layout) -> None:
    """Reject dividing models without megatron-core, before anything is loaded.

    Raises:
        ConfigError: megatron-core is required but not installed.
    """
    if not layout.is_whole and importlib.util.find_spec("megatron") is None:
        raise ConfigError(
            "models can be shared by several processes only with megatron-core, which is not "
            "installed. Install gkd-core[parallel]"
        )


def _misfit(info: ModelInfo, degree: int, repeats: bool) -> str | None:
    """Return the violated relation, or None; with `repeats`, ranks may hold the same key heads."""
    if info.heads % degree:
        return _remainder(degree, info.heads, "attention heads")
    if info.kv_heads % degree and not (repeats and degree % info.kv_heads == 0):
        return _remainder(degree, info.kv_heads, "key and value heads")
    if info.ffn_size % degree:
        return _remainder(degree, info.ffn_size, "feed-forward units")
    return None


def _remainder(degree: int, size: int, what: str) -> str:
    return f"it does not divide the {size} {what} ({size} % {degree} = {size % degree})"
