"""Centered kernel alignment (CKA): how similar two representations of the same items are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gkd_core.distributed.groups import data_group, data_size

FEWEST_ITEMS = 4
"""Items that the unbiased estimator needs."""


def unbiased_cka(x: Tensor, y: Tensor) -> Tensor:
    """Return the linear CKA of two representations, with the unbiased estimator of HSIC.

    With the estimator HSIC_1 of Song et al. (2012, Eq. 5) and linear kernels, it is
    HSIC_1(X, Y) / sqrt(HSIC_1(X, X) HSIC_1(Y, Y)) (Kornblith et al., 2019; Nguyen et al., 2021).
    It is invariant to rotation and scaling of either side, whose widths may differ, and does not
    grow with the width as the biased estimator does. It is about 0 for unrelated representations,
    where it may be negative, and 1 for equal ones.

    The items are those of all ranks that divide the rows, which must all call this. No gradient.

    Args:
        x: Vectors of this rank's items, `[N, D]`; a rank may have none.
        y: Vectors of the same items by the other model, `[N, E]`.

    Returns:
        A number in fp64; NaN with fewer than `FEWEST_ITEMS` items or if one side does not vary.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = _centered(x.detach().to(dtype)), _centered(y.detach().to(dtype))
    a, b = _squares(x), _squares(y)
    scalars = _sum_over_ranks(
        torch.stack([torch.ones_like(a), a, b, a * b, a * a, b * b], -1).sum(0)
    )
    n, sum_a, sum_b, ab, aa, bb = scalars.unbind()

    def hsic(product: Tensor, diagonal: Tensor, first: Tensor, second: Tensor) -> Tensor:
        # With centered vectors the rows of a kernel matrix add up to 0, so that all sums over the
        # matrices without their diagonals, which HSIC_1 consists of, are sums over the diagonals.
        off = product - diagonal
        return (off + first * second / ((n - 1) * (n - 2)) - 2 * diagonal / (n - 2)) / (n * (n - 3))

    both = hsic(_product(x, y), ab, sum_a, sum_b)
    own, other = hsic(_product(x, x), aa, sum_a, sum_a), hsic(_product(y, y), bb, sum_b, sum_b)
    return torch.where(n < FEWEST_ITEMS, math.nan, both / (own * other).sqrt())


def unbiased_cka_table(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """Return the unbiased CKA of several representations with each of several others, `[X, Y]`.

    Each kernel matrix is computed once: of few items with wide vectors, many pairs cost little. All
    items are those of this process.

    Args:
        xs: Vectors of the items, `[N, D]` each.
        ys: Vectors of the same items by the other model, `[N, E]` each.

    Returns:
        As `unbiased_cka` does, in fp64.
    """
    left, right = (_Kernels.of(vectors) for vectors in (xs, ys))
    both = left.products(right)
    own, other = (side.products(side).diagonal() for side in (left, right))
    return both / (own.unsqueeze(1) * other).sqrt()


@dataclass(frozen=True)
class _Kernels:
    """Kernel matrices without their diagonals, in fp64.

    Attributes:
        matrices: `[X, N * N]`.
        rows: Sums of their rows, `[X, N]`.
    """

    matrices: Tensor
    rows: Tensor

    @classmethod
    def of(cls, vectors: Sequence[Tensor]) -> _Kernels:
        wide = [
            each.detach().to(torch.promote_types(each.dtype, torch.float32)) for each in vectors
        ]
        centered = [each - each.mean(0) for each in wide]
        kernels = torch.stack([each @ each.T for each in centered]).double()
        kernels.diagonal(dim1=1, dim2=2).zero_()
        return cls(kernels.flatten(1), kernels.sum(1))

    def products(self, other: _Kernels) -> Tensor:
        """Return HSIC_1 of each with each of the other side, up to a factor that all share."""
        n = self.rows.shape[1]
        sums = self.rows.sum(1, keepdim=True) * other.rows.sum(1)
        inner = self.rows @ other.rows.T
        found = self.matrices @ other.matrices.T
        if n < FEWEST_ITEMS:
            return torch.full_like(found, math.nan)
        return found + sums / ((n - 1) * (n - 2)) - 2 * inner / (n - 2)


def _centered(vectors: Tensor) -> Tensor:
    """Return vectors minus their mean over all ranks."""
    count = vectors.new_tensor([len(vectors)], dtype=torch.float64)
    total = _sum_over_ranks(torch.cat([vectors.double().sum(0), count]))
    return vectors - (total[:-1] / total[-1].clamp(min=1)).to(vectors.dtype)


def _squares(vectors: Tensor) -> Tensor:
    """Return the squared lengths of vectors, the diagonal of their kernel matrix, in fp64."""
    return vectors.square().sum(-1).double()


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Return the sum of the products of both kernel matrices, from their smaller cross product."""
    with torch.autocast(x.device.type, enabled=False):
        return _sum_over_ranks(x.T @ y).double().square().sum()


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    if data_size() > 1:
        dist.all_reduce(tensor, group=data_group())
    return tensor
