"""Plans of tensor parallelism: the modules of an architecture to divide, and how.

Names are relative to the base model, with `*` for the block number. The plans of transformers
(`base_model_tp_plan`) are used for architectures without one here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from gkd_core.contract.architectures import adapter_of
from gkd_core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class ColumnParallel:
    """A linear layer whose outputs are divided.

    Attributes:
        parts: Number of equal layers fused into one, each of which is divided by itself.
    """

    parts: int = 1


@dataclass(frozen=True)
class RowParallel:
    """A linear layer whose inputs are divided; its outputs are summed over the ranks."""


@dataclass(frozen=True)
class Summed:
    """A replicated module that each rank applies to its own heads: its gradient is summed."""


Style: TypeAlias = ColumnParallel | RowParallel | Summed
Plan: TypeAlias = Mapping[str, Style]

ENCODER: Plan = {
    "encoder.layer.*.attention.self.query": ColumnParallel(),
    "encoder.layer.*.attention.self.key": ColumnParallel(),
    "encoder.layer.*.attention.self.value": ColumnParallel(),
    "encoder.layer.*.attention.output.dense": RowParallel(),
    "encoder.layer.*.intermediate.dense": ColumnParallel(),
    "encoder.layer.*.output.dense": RowParallel(),
}
DISTILBERT: Plan = {
    "transformer.layer.*.attention.q_lin": ColumnParallel(),
    "transformer.layer.*.attention.k_lin": ColumnParallel(),
    "transformer.layer.*.attention.v_lin": ColumnParallel(),
    "transformer.layer.*.attention.out_lin": RowParallel(),
    "transformer.layer.*.ffn.lin1": ColumnParallel(),
    "transformer.layer.*.ffn.lin2": RowParallel(),
}
GPT2: Plan = {
    "h.*.attn.c_attn": ColumnParallel(parts=3),
    "h.*.attn.c_proj": RowParallel(),
    "h.*.mlp.c_fc": ColumnParallel(),
    "h.*.mlp.c_proj": RowParallel(),
}
# Transformers' plan divides the feed-forward weights but not their outputs, because the gate and up
# projections are fused; divided part by part, both can be.
GLM: Plan = {
    "layers.*.self_attn.q_proj": ColumnParallel(),
    "layers.*.self_attn.k_proj": ColumnParallel(),
    "layers.*.self_attn.v_proj": ColumnParallel(),
    "layers.*.self_attn.o_proj": RowParallel(),
    "layers.*.mlp.gate_up_proj": ColumnParallel(parts=2),
    "layers.*.mlp.down_proj": RowParallel(),
}
OPT: Plan = {
    "decoder.layers.*.self_attn.q_proj": ColumnParallel(),
    "decoder.layers.*.self_attn.k_proj": ColumnParallel(),
    "decoder.layers.*.self_attn.v_proj": ColumnParallel(),
    "decoder.layers.*.self_attn.out_proj": RowParallel(),
    "decoder.layers.*.fc1": ColumnParallel(),
    "decoder.layers.*.fc2": RowParallel(),
}
MODERNBERT: Plan = {
    "layers.*.attn.Wqkv": ColumnParallel(parts=3),
    "layers.*.attn.Wo": RowParallel(),
    "layers.*.mlp.Wi": ColumnParallel(parts=2),
    "layers.*.mlp.Wo": RowParallel(),
}
# Transformers' plan divides the experts, too, which every rank holds whole here.
QWEN3_MOE: Plan = {
    "layers.*.self_attn.q_proj": ColumnParallel(),
    "layers.*.self_attn.k_proj": ColumnParallel(),
    "layers.*.self_attn.v_proj": ColumnParallel(),
    "layers.*.self_attn.q_norm": Summed(),
    "layers.*.self_attn.k_norm": Summed(),
    "layers.*.self_attn.o_proj": RowParallel(),
    "layers.*.mlp.gate_proj": ColumnParallel(),
    "layers.*.mlp.up_proj": ColumnParallel(),
    "layers.*.mlp.down_proj": RowParallel(),
}
PLANS: Mapping[str, Plan] = {
    "bert": ENCODER,
    "roberta": ENCODER,
    "electra": ENCODER,
    "distilbert": DISTILBERT,
    "gpt2": GPT2,
    "opt": OPT,
    "modernbert": MODERNBERT,
    "qwen3_moe": QWEN3_MOE,
    "glm": GLM,
    "glm4": GLM,
}
STYLES: Mapping[str, Style] = {
    "colwise": ColumnParallel(),
    "rowwise": RowParallel(),
    "replicated_with_grad_allreduce": Summed(),
}
"""Styles by their names in transformers' plans."""

KEYS_AND_VALUES = ("k_proj", "v_proj")
"""Projections that every rank may hold whole, if there are fewer heads than ranks."""

GROUPS = "num_key_value_groups"
"""Attribute of attention modules: number of query heads per key head."""


def find_plan(config: PretrainedConfig) -> Plan:
    """Return the plan of an architecture: that of a plugin's adapter, core's or transformers'.

    Raises:
        ConfigError: There is none, or it requires an unsupported style.
    """
    family = config.model_type
    adapter = adapter_of(family)
    if adapter is not None and adapter.tensor_plan:
        return adapter.tensor_plan
    if family in PLANS:
        return PLANS[family]
    theirs = getattr(config, "base_model_tp_plan", None) or {}
    foreign = sorted(set(theirs.values()) - set(STYLES))
    if theirs and not foreign:
        return {name: STYLES[style] for name, style in theirs.items()}
    reason = f"its plan needs {', '.join(foreign)}" if foreign else "transformers has no plan"
    raise ConfigError(
        f"{family} models cannot be divided over a tensor group ({reason}); there are plans for "
        f"{', '.join(PLANS)} and for families such as llama, mistral, qwen2 and qwen3. Keep the "
        "tensor degree at 1, and divide the model by ZeRO; a plugin can give a plan in a `Sites` "
        "class"
    )


def generic(name: str) -> str:
    """Return the name of a module with `*` for its block number."""
    return NUMBER.sub("*", name)
