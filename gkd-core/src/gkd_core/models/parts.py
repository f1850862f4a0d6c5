"""Parts of a student with separate learning rates: its embedding, its blocks, its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import nn

    from gkd_core.models.sites import Sites

Part: TypeAlias = int | Literal["embedding", "head"]
"""A part of the student: the number of a block, counted from 1, `embedding` or `head`.

`embedding` is everything before the blocks, `head` everything after them: the final norm, the
pooler and the head of the task.
"""

Parts: TypeAlias = Mapping[Part, Sequence["nn.Parameter"]]
"""The weights of each part."""

POOLER = "pooler"
"""Transformers' name for the layer between the first hidden state and a classification head."""


def find_parts(sites: Sites) -> Parts:
    """Return the weights of a model by part; a shared weight belongs to the first of its parts.

    A head that is tied to the embedding is therefore part of the embedding.
    """
    base = sites.model.base_model
    after = [sites.final_norm, getattr(base, POOLER, None)]
    outer = {weight for module in after if module is not None for weight in module.parameters()}
    inner = {weight for block in sites.blocks for weight in block.parameters()}
    embedding = [w for w in base.parameters() if w not in outer and w not in inner]
    found: dict[Part, Sequence[nn.Parameter]] = {"embedding": embedding}
    taken = set(embedding)
    for number, block in enumerate(sites.blocks, start=1):
        found[number] = [weight for weight in block.parameters() if weight not in taken]
        taken.update(found[number])
    found["head"] = [weight for weight in sites.model.parameters() if weight not in taken]
    return found


def part_name(part: Part) -> str:
    """Return the name of a part for messages."""
    return f"block {part}" if isinstance(part, int) else part
