"""Losses over a large last dimension, computed a few rows at a time.

Written down plainly, a loss over logits needs several fp32 tensors of their size. Here a rule
computes value and gradient for a chunk of rows at once, and only one chunk is held. The logits of a
`LinearLogits` exist for a chunk only, too: their gradients go straight to hidden states, weight and
bias. Rows that do not count are never touched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gkd_core.contract.batch import Items
from gkd_core.losses.gradient import Gradients, differentiable
from gkd_core.losses.logits import LinearLogits, Logits, vocabulary_of
from gkd_core.losses.rows import GivenRows, LinearRows, LogitRows, precision
from gkd_core.losses.rules import Rule, Slope
from gkd_core.losses.term import Term
from gkd_core.losses.top_k import Buckets, TopKLogits, bucketed

CHUNK_ELEMENTS = 2**21
"""Elements (rows x vocabulary) of a chunk: 8 MiB in fp32, whatever the vocabulary size."""

FUSED_ROWS = 256
"""Minimum rows of a chunk whose logits are computed here: fewer are inefficient for matmuls."""


def rowwise(
    rule: Rule,
    student: Logits,
    target: Logits,
    over: Items,
    temperature: float = 1.0,
    factor: float = 1.0,
    pieces: int = 1,
) -> Term:
    """Apply a rule to every row that counts.

    Args:
        rule: Value and gradient of a chunk of rows.
        student: `[*items, V]`, differentiated.
        target: The rule's second argument for the same rows, `[*items, ...]`; constant. If the
            student's columns are divided over ranks, the target's matching local columns.
        over: The items, and which of them count.
        temperature: Divisor of the logits, and of the target unless it holds labels or buckets.
        factor: Multiplier of the losses.
        pieces: Number of pieces that a chunk is divided into, for a rule that holds more tensors.
    """
    for logits in (student, target):
        if logits.shape[: over.mask.dim()] != over.mask.shape:
            raise ValueError(
                f"logits {tuple(logits.shape)} do not have one row per {over.kind} "
                f"({tuple(over.mask.shape)})"
            )
    losses = RowLosses(rule, student, target, over, temperature, factor, pieces)
    return Term(differentiable(losses, _parts(student), _fixed(target)), over)


class RowLosses:
    """Per-row losses for `differentiable`."""

    def __init__(
        self,
        rule: Rule,
        student: Logits,
        target: Logits,
        over: Items,
        temperature: float,
        factor: float,
        pieces: int = 1,
    ) -> None:
        """Store the settings; arguments as for `rowwise`."""
        self.rule = rule
        # The weights are in memory anyway.
        self.target_head = _parts(target)[1:] if isinstance(target, LinearLogits) else ()
        self.in_buckets = isinstance(target, TopKLogits)
        self.over = over
        self.vocabulary = vocabulary_of(student)
        self.temperature = temperature
        self.factor = factor
        # Read now: backward, which may compute the logits again, runs outside of autocast.
        self.precision = precision(student)
        self.target_precision = precision(target)
        self.mixes = isinstance(student, LinearLogits)
        fused = self.mixes or isinstance(target, LinearLogits)
        columns = len(student.weight) if isinstance(student, LinearLogits) else student.shape[-1]
        rows = max(FUSED_ROWS if fused else 1, CHUNK_ELEMENTS // max(1, columns))
        self.chunk = max(1, rows // pieces)

    def __call__(
        self,
        inputs: Sequence[Tensor | None],
        fixed: Sequence[Tensor | None],
        weights: Tensor | None,
        wanted: Sequence[bool],
    ) -> tuple[Tensor, Gradients]:
        """Return the losses `[*items]`, and the gradients of their weighted sum."""
        mask = self.over.mask
        student = _rows(inputs, self.precision, self.over)
        targets = self._targets(fixed)
        gradients = student.zeros(wanted)
        dtype = torch.promote_types(self.precision, torch.float32)
        values = torch.zeros(mask.numel(), dtype=dtype, device=mask.device)
        with torch.autocast(mask.device.type, enabled=False):
            for index in torch.split(self.over.index, self.chunk):
                logits = self._soften(student.at(index), dtype)
                value, slope = self._compare(logits, targets.at(index), dtype)
                values[index] = value * self.factor
                if any(wanted):
                    student.add(gradients, index, self._weigh(slope(), weights, index))
        return values.view(mask.shape), gradients

    def _targets(self, fixed: Sequence[Tensor | None]) -> LogitRows | Buckets:
        if self.in_buckets:
            ids, log_probs = fixed
            assert ids is not None, "buckets have words"
            assert log_probs is not None, "buckets have probabilities"
            return Buckets(ids.flatten(0, -2), log_probs.flatten(0, -2))
        return _rows((*fixed, *self.target_head), self.target_precision, self.over)

    def _compare(
        self, logits: Tensor, target: Tensor | Buckets, dtype: torch.dtype
    ) -> tuple[Tensor, Slope]:
        if isinstance(target, Buckets):
            return bucketed(self.rule, logits, target, self.vocabulary)
        return self.rule(logits, self._soften(target, dtype), self.vocabulary)

    def _soften(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Divide logits by the temperature; labels stay as they are."""
        if not rows.is_floating_point():
            return rows
        rows = rows.to(dtype)
        return rows if self.temperature == 1 else rows / self.temperature

    def _weigh(self, slope: Tensor, weights: Tensor | None, index: Tensor) -> Tensor:
        """Apply the chain rule for what surrounds the rule: temperature, factor and weights."""
        rate = self.factor / self.temperature
        if rate != 1:
            slope = slope.mul_(rate)
        return slope if weights is None else slope.mul_(weights.flatten()[index].unsqueeze(-1))


def _parts(logits: Logits) -> tuple[Tensor | None, ...]:
    """Return the tensors that logits consist of."""
    if isinstance(logits, Tensor):
        return (logits,)
    if isinstance(logits, TopKLogits):
        return logits.refuse("a loss of the teacher itself")
    return logits.shared, logits.weight, logits.bias


def _fixed(target: Logits) -> tuple[Tensor | None, ...]:
    """Return the tensors that vary from row to row of a target."""
    if isinstance(target, TopKLogits):
        return target.ids, target.log_probs
    return _parts(target)[:1]


def _rows(parts: Sequence[Tensor | None], dtype: torch.dtype, over: Items) -> LogitRows:
    """Return the rows of the logits that consist of the given tensors."""
    first, *rest = parts
    assert first is not None, "only a bias may be missing"
    if not rest:
        return GivenRows(first, over.mask.dim())
    weight, bias = rest
    assert weight is not None, "only a bias may be missing"
    return LinearRows(first, weight, bias, dtype)
