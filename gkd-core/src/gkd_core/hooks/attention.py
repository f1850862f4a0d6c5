"""Attention that can be read and changed without falling back to eager attention.

transformers looks attention functions up by name. The one registered here shows the current pass
the inputs and outputs of the attention modules, and is otherwise stock scaled-dot-product
attention. Scores and probabilities are computed from the captured queries and keys outside the
forward pass, for the layers that are read, and inside it only where an operation changes them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gkd_core.hooks.forward import Forward, current_forward
from gkd_core.hooks.paths import Capture
from gkd_core.losses.relation import Relation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "gkd_sdpa"


def switch_attention(model: PreTrainedModel, name: str) -> None:
    """Switch a model to the attention function that transformers knows as `name`."""
    if model.config._attn_implementation != name:
        model.set_attn_implementation(name)


def gkd_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute stock scaled-dot-product attention, and show it to the current pass.

    The signature is that of transformers' attention functions.
    """
    stock = partial(
        sdpa_attention_forward,
        module,
        attention_mask=attention_mask,
        scaling=scaling,
        is_causal=is_causal,
        **options,
    )
    forward = current_forward()
    layer = None if forward is None else forward.attention_layer(module)
    if forward is None or layer is None:
        output, _ = stock(query, key, value)
        return output, None
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    relation = Relation(
        query=query,
        key=key,
        mask=attention_mask,
        causal=causal and query.shape[2] > 1,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        bias=options.get("position_bias"),
    )
    relation, value = forward.enter_attention(layer, relation, value)
    if forward.computes_probs(layer):
        dropout = options.get("dropout", 0.0)
        output = _attend(forward, layer, relation, value, dropout)
    else:
        output, _ = stock(relation.query, relation.key, value)
    context = forward.visit(Capture("context", layer), output.flatten(2))
    return context.view(output.shape), None


def _attend(
    forward: Forward, layer: int, relation: Relation, value: Tensor, dropout: float
) -> Tensor:
    """Compute attention step by step, with changed scores or distributions: `[B, S, A, Dh]`.

    transformers passes a dropout of 0 outside of training.
    """
    scores = forward.visit(Capture("scores", layer), relation.scores())
    probs = forward.visit(Capture("probs", layer), scores.softmax(-1))
    probs = functional.dropout(probs, dropout).to(value.dtype)
    values: Tensor = repeat_kv(value, probs.shape[1] // value.shape[1])
    return (probs @ values).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, gkd_sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)
