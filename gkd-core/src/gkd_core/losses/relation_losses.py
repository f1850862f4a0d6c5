"""Losses that compare two relations, such as the attention of teacher and student.

Scores and their gradients have the size `[B, A, S, S]`. They are computed for a few samples, heads
and queries at a time, and only the gradients of queries and keys are kept. If heads are divided
over ranks, each rank compares its own, and one number per query is summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gkd_core.contract.batch import Items
from gkd_core.distributed.collectives import all_reduce
from gkd_core.losses import chunked, rules
from gkd_core.losses.gradient import Gradients, differentiable
from gkd_core.losses.relation import Relation, RelationBlock
from gkd_core.losses.term import Term
from gkd_core.losses.vocabulary import WHOLE


def relation_kl(student: Relation, teacher: Relation, over: Items) -> Term:
    """KL(teacher || student) of the distributions over the keys, averaged over heads.

    On attention it is the self-attention distribution transfer of MiniLM (Wang et al., 2020), on
    values its value-relation transfer, and with `self_relation` the loss of MiniLMv2 (Wang et al.,
    2021). Invariant to rotation of the vectors of a head, whose width may differ between the two
    models. Both should mask the same keys.

    Args:
        student: Relation of the student; its queries, keys and bias are differentiated.
        teacher: Relation of the teacher, with as many heads; constant.
        over: The queries averaged over, `[B, S]`, or `[S]` if B is 1: vectors `[N, D]` of samples
            are related to each other as `self_relation(x[None], heads, mask[None])`.

    Raises:
        ValueError: The numbers of heads or of positions differ.
    """
    return _compare(rules.kl, student, teacher, over)


def relation_mse(student: Relation, teacher: Relation, over: Items) -> Term:
    """Mean squared error of the scores, over the keys that are not masked and over the heads.

    The attention loss of TinyBERT (Jiao et al., 2020). Arguments as for `relation_kl`.
    """
    return _compare(rules.visible_mse, student, teacher, over)


class RelationLosses:
    """Per-query losses for `differentiable`."""

    mixes = True

    def __init__(self, rule: rules.Rule, student: Relation, teacher: Relation, over: Items) -> None:
        """Store the arguments of `relation_kl`, after matching the teacher's heads."""
        self.rule = rule
        self.student = _less_tensors(student)
        self.teacher = _less_tensors(teacher)
        self.over = over
        self.heads = student.shape[1]
        self.group = None if student.heads is None else student.heads.group

    def __call__(
        self,
        inputs: Sequence[Tensor | None],
        fixed: Sequence[Tensor | None],
        weights: Tensor | None,
        wanted: Sequence[bool],
    ) -> tuple[Tensor, Gradients]:
        """Return the losses `[*items]`, and the gradients of their weighted sum."""
        student, teacher = self.student(*inputs), self.teacher(*fixed)
        samples, _, queries, _ = student.shape
        counts = self.over.mask.view(samples, queries)
        dtype = torch.promote_types(student.query.dtype, torch.float32)
        values = student.query.new_zeros(samples, queries, dtype=dtype)
        rates = counts.to(dtype) / self.heads
        if weights is not None:
            rates = rates * weights.view_as(rates)
        gradients = _zeros(inputs, wanted)
        with torch.autocast(student.query.device.type, enabled=False):
            for block in _blocks(student.shape):
                rows, targets = student.part(block), teacher.part(block)
                value, slope = self.rule(rows.scores(), targets.scores(), WHOLE)
                values[block.samples, block.queries] += value.sum(1)
                if any(wanted):
                    _add(gradients, block, student, slope(), rates)
        values = values if self.group is None else all_reduce(values, self.group)
        values = torch.where(counts, values / self.heads, 0.0)
        return values.view(self.over.mask.shape), gradients


def _add(
    gradients: Gradients, block: RelationBlock, student: Relation, slope: Tensor, rates: Tensor
) -> None:
    """Add the contribution of a block's score gradient to queries, keys and bias."""
    query, key, bias, _ = gradients
    rate = block.of(rates[:, None, :, None])
    rows = student.part(block)
    if query is not None:
        block.of(query).copy_(slope @ rows.key.to(slope.dtype) * (rate * student.scale))
    if key is not None:
        share = slope.transpose(-1, -2) @ (rows.query.to(slope.dtype) * (rate * student.scale))
        key[block.samples].index_add_(1, student.key_heads(block.heads), share)
    if bias is not None:
        part = block.of(bias)
        part.add_((slope * rate).sum_to_size(part.shape))


def _compare(rule: rules.Rule, student: Relation, teacher: Relation, over: Items) -> Term:
    if student.shape != teacher.shape:
        raise ValueError(
            f"student relation {tuple(student.shape)} and teacher relation {tuple(teacher.shape)} "
            "differ in samples, heads or positions; `self_relation` splits into any number of heads"
        )
    samples, _, queries, _ = student.shape
    if over.mask.shape != (samples, queries) and (samples, *over.mask.shape) != (1, queries):
        raise ValueError(
            f"relation {tuple(student.shape)} does not have one query per {over.kind} "
            f"({tuple(over.mask.shape)})"
        )
    teacher = teacher.match_heads(student.heads)
    losses = RelationLosses(rule, student, teacher, over)
    return Term(differentiable(losses, _tensors(student), _tensors(teacher)), over)


def _tensors(relation: Relation) -> tuple[Tensor | None, ...]:
    return relation.query, relation.key, relation.bias, relation.mask


def _less_tensors(relation: Relation) -> Callable[..., Relation]:
    """Return a function that rebuilds the relation from its tensors, without divided heads."""
    causal, scale = relation.causal, relation.scale

    def relate(query: Tensor, key: Tensor, bias: Tensor | None, mask: Tensor | None) -> Relation:
        return Relation(query, key, mask, causal, scale, bias)

    return relate


def _zeros(inputs: Sequence[Tensor | None], wanted: Sequence[bool]) -> Gradients:
    """Return zero gradients, at least fp32 because several blocks may add to the same element."""
    return [
        torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
        if tensor is not None and want
        else None
        for tensor, want in zip(inputs, wanted, strict=True)
    ]


def _blocks(shape: Sequence[int]) -> Iterator[RelationBlock]:
    """Yield blocks of scores `[B, A, S, S]` that fit a chunk, or single rows."""
    samples, heads, queries, keys = shape
    rows = max(1, chunked.CHUNK_ELEMENTS // keys)
    for sample in _slices(samples, rows // (heads * queries)):
        for head in _slices(heads, rows // queries):
            for query in _slices(queries, rows):
                yield RelationBlock(sample, head, query)


def _slices(length: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
