"""Which modules of an architecture are divided over a tensor group, and how.

The names are those inside the base model, with `*` for the number of a block. Plans that come with
transformers (`base_model_tp_plan`) are used where there is none here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from gkd_core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Column:
    """A linear map whose outputs are divided.

    Attributes:
        parts: Number of equal maps fused into one, each of which is divided by itself.
    """

    parts: int = 1


@dataclass(frozen=True)
class Row:
    """A linear map whose inputs are divided; its outputs are summed over the ranks."""


@dataclass(frozen=True)
class Summed:
    """A module that every rank has and applies to its own heads: its gradient is summed."""


Style: TypeAlias = Column | Row | Summed
Plan: TypeAlias = Mapping[str, Style]

ENCODER: Plan = {
    "encoder.layer.*.attention.self.query": Column(),
    "encoder.layer.*.attention.self.key": Column(),
    "encoder.layer.*.attention.self.value": Column(),
    "encoder.layer.*.attention.output.dense": Row(),
    "encoder.layer.*.intermediate.dense": Column(),
    "encoder.layer.*.output.dense": Row(),
}
DISTILBERT: Plan = {
    "transformer.layer.*.attention.q_lin": Column(),
    "transformer.layer.*.attention.k_lin": Column(),
    "transformer.layer.*.attention.v_lin": Column(),
    "transformer.layer.*.attention.out_lin": Row(),
    "transformer.layer.*.ffn.lin1": Column(),
    "transformer.layer.*.ffn.lin2": Row(),
}
GPT2: Plan = {
    "h.*.attn.c_attn": Column(parts=3),
    "h.*.attn.c_proj": Row(),
    "h.*.mlp.c_fc": Column(),
    "h.*.mlp.c_proj": Row(),
}
# The plan of transformers divides the feed-forward weights but not their outputs, because gate and
# up projection are fused; divided part by part, both can be.
GLM: Plan = {
    "layers.*.self_attn.q_proj": Column(),
    "layers.*.self_attn.k_proj": Column(),
    "layers.*.self_attn.v_proj": Column(),
    "layers.*.self_attn.o_proj": Row(),
    "layers.*.mlp.gate_up_proj": Column(parts=2),
    "layers.*.mlp.down_proj": Row(),
}
PLANS: Mapping[str, Plan] = {
    "bert": ENCODER,
    "roberta": ENCODER,
    "distilbert": DISTILBERT,
    "gpt2": GPT2,
    "glm": GLM,
    "glm4": GLM,
}
STYLES: Mapping[str, Style] = {
    "colwise": Column(),
    "rowwise": Row(),
    "replicated_with_grad_allreduce": Summed(),
}
"""What the plans of transformers call the styles."""

KEYS_AND_VALUES = ("k_proj", "v_proj")
"""Projections that every rank may have whole, if there are fewer heads than ranks."""

DIVIDED = ("split_size",)
"""Attributes of modules that count outputs of a divided map (GPT-2's attention)."""

GROUPS = "num_key_value_groups"
"""Attribute of attention modules: query heads per key head."""


def find_plan(config: PretrainedConfig) -> Plan:
    """Return the plan of an architecture.

    Raises:
        ConfigError: There is none, or it asks for something that is not built.
    """
    family = config.model_type
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
        "tensor degree at 1, and divide the model by ZeRO"
    )


def generic(name: str) -> str:
    """Return the name of a module with `*` for the number of its block."""
    return NUMBER.sub("*", name)
