"""`Term`: per-item losses and the items they belong to, which core averages globally."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor

from gkd_core.contract.batch import ItemKind, Items
from gkd_core.losses.gradient import scaled


@dataclass(frozen=True)
class Term:
    """Losses of the items of a micro-batch.

    Core divides the sum by the number of items in the whole optimizer step, so that neither the
    micro-batch size nor the number of ranks changes the gradient. Terms over items of the same kind
    can be added, several by `Term.sum`, and multiplied by a number or a tensor that broadcasts to
    the values.

    Attributes:
        values: fp32, of the shape of `over.mask`; 0 where the item does not count.
        over: The items.
    """

    values: Tensor
    over: Items

    def __add__(self, other: Term) -> Term:
        if self.over.kind != other.over.kind:
            raise ValueError(f"cannot add losses over {self.over.kind}s and {other.over.kind}s")
        return Term(self.values + other.values, self.over)

    def __radd__(self, other: int) -> Term:
        """Support `sum()`, which starts from the integer 0."""
        if other != 0:
            raise TypeError("a Term can only be added to a Term")
        return self

    def __mul__(self, factor: float | Tensor) -> Term:
        """Multiply; with a constant, backward of the values stays a single multiplication."""
        if isinstance(factor, Tensor) and (factor.dim() or factor.requires_grad):
            return Term(self.values * factor, self.over)
        return Term(scaled(self.values, factor), self.over)

    __rmul__ = __mul__

    @staticmethod
    def sum(terms: Iterable[Term]) -> Term:
        """Return the sum of terms over items of the same kind, such as those of several layers.

        Raises:
            ValueError: There are none, or their kinds differ.
        """
        every = list(terms)
        if not every:
            raise ValueError("there is no term to sum; return no term if nothing is compared")
        return reduce(add, every)

    def mean(self, counts: Mapping[ItemKind, int] | None = None) -> Tensor:
        """Return the sum over the items divided by their number; 0 if there are none.

        Args:
            counts: Number of items of each kind in the optimizer step. Default: those of this
                micro-batch.
        """
        count = self.over.count if counts is None else counts[self.over.kind]
        return self.values.sum() / max(count, 1)
