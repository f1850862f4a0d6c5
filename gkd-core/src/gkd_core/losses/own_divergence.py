"""`divergence`: a divergence of distributions made from a rule that a plugin writes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks

from gkd_core.contract.batch import Items
from gkd_core.losses.divergences import compare
from gkd_core.losses.logits import Logits
from gkd_core.losses.rules import Slope
from gkd_core.losses.term import Term
from gkd_core.losses.vocabulary import Vocabulary

Sum: TypeAlias = Callable[[Tensor], Tensor]
"""Sums over the whole vocabulary, `[N, V]` to `[N]`."""

DivergenceRule: TypeAlias = Callable[[Tensor, Tensor, Sum], Tensor]
"""The losses `[N]` of rows of log-probabilities `[N, V]`; see `divergence`."""


PIECES = 4
"""Pieces of a chunk: autograd holds more tensors than a closed form, and frees them later."""


class CustomDivergence(Protocol):
    """A divergence, called like `kl`."""

    def __call__(
        self,
        student: Logits,
        teacher: Logits,
        over: Items,
        temperature: float = 1.0,
        scale: bool = True,
    ) -> Term:
        """Return the losses of the items; arguments as for `kl`."""


def divergence(rule: DivergenceRule) -> CustomDivergence:
    """Return the divergence that a rule defines; call it like `kl`.

    The rule is applied to a few rows at a time and differentiated there, so that neither logits nor
    intermediate results are ever held as a whole. It receives the log-probabilities of student and
    teacher after softening, `[N, V]` in fp32 or fp64, and a function `sum`, and returns one loss
    per row, `[N]`::

        @divergence
        def kl(log_student, log_teacher, sum):
            return sum(log_teacher.exp() * (log_teacher - log_student))

    If the vocabulary is sharded over ranks, the columns are this rank's, and only `sum` sees all.
    Each operation on columns must therefore be elementwise; everything else goes through `sum`,
    which may be called several times. Columns without probability have the lowest float instead of
    -inf. Rows are independent of each other, and the rule may be called again for the same rows.

    Args:
        rule: The rule.
    """
    chunk_rule = partial(_differentiate, rule)

    def compute(
        student: Logits,
        teacher: Logits,
        over: Items,
        temperature: float = 1.0,
        scale: bool = True,
    ) -> Term:
        return compare(chunk_rule, student, teacher, over, temperature, scale, PIECES)

    compute.__name__ = getattr(rule, "__name__", "divergence")
    compute.__doc__ = rule.__doc__
    return compute


def _differentiate(
    rule: DivergenceRule, logits: Tensor, target: Tensor, vocabulary: Vocabulary
) -> tuple[Tensor, Slope]:
    """Return the losses of a chunk of rows, and their gradients by autograd."""
    log_q, log_p = vocabulary.log_softmax(logits, target)
    # What the rule saves is small and needed at once: methods may offload what is saved.
    with torch.enable_grad(), saved_tensors_hooks(_keep, _keep):
        leaf = log_q.detach().requires_grad_()
        value = rule(leaf, log_p, partial(_sum, vocabulary))
    _check(rule, value, len(logits))

    def slope() -> Tensor:
        # Every rank starts from its copy of the same value: together they count it once.
        seed = torch.full_like(value, 1 / vocabulary.ranks)
        (gradient,) = torch.autograd.grad(value, leaf, seed)
        gradient = gradient.masked_fill(log_q <= torch.finfo(log_q.dtype).min, 0.0)
        total = vocabulary.sum(gradient).unsqueeze(-1)
        return gradient.sub_(log_q.exp().mul_(total))

    return value.detach(), slope


def _check(rule: DivergenceRule, value: Tensor, rows: int) -> None:
    name = getattr(rule, "__name__", "the rule")
    if value.shape != (rows,):
        raise ValueError(
            f"{name} returned {tuple(value.shape)} for {rows} rows; return one loss per row, "
            "reduced over the vocabulary by `sum`"
        )
    if not value.requires_grad:
        raise ValueError(f"{name} does not depend on the student's log-probabilities")


def _sum(vocabulary: Vocabulary, terms: Tensor) -> Tensor:
    total: Tensor = _SumColumns.apply(terms, vocabulary)  # type: ignore[no-untyped-call]
    return total


def _keep(tensor: Tensor) -> Tensor:
    return tensor


class _SumColumns(Function):
    """The sum over all columns, on every rank; its gradient comes from all of them."""

    @staticmethod
    def forward(ctx: Any, terms: Tensor, vocabulary: Vocabulary) -> Tensor:
        ctx.vocabulary, ctx.shape = vocabulary, terms.shape
        return vocabulary.sum(terms)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.vocabulary.sum(gradient.unsqueeze(-1)).unsqueeze(-1).expand(ctx.shape), None
