"""Angle-wise relations: the angles of the triangles formed by points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gkd_core.contract.batch import Items
from gkd_core.losses import chunked
from gkd_core.losses.gradient import Gradients, differentiable
from gkd_core.losses.term import Term


def angles(
    student: Tensor, teacher: Tensor, over: Items, delta: float = 1.0, around: Tensor | None = None
) -> Term:
    """Huber loss between the cosines of the angles at every point of student and teacher.

    Angle-wise distillation, RKD-A (Park et al., 2019): at vertex j, for every other two points i
    and k, the cosine of the angle between x_i - x_j and x_k - x_j. The loss of a vertex is the mean
    over the pairs i != k of points that count; it is 0 if there are fewer than two such points.
    Invariant to rotation, translation and positive scaling. Cosines differ by at most 2, so that
    `delta=2` gives half the squared error.

    Args:
        student: Points `[G, N, D]`; triangles are formed within each of the G groups.
        teacher: Points `[G, N, D']`, constant.
        over: The vertices, `[G, N]`, or `[N]` if G is 1.
        delta: Difference up to which the loss is half the square.
        around: The points that each vertex sees, int64 `[G, N, M]`, or `[1, N, M]` if they are the
            same for all groups; -1 where there is none. Default: all points.

    Raises:
        ValueError: The numbers of points differ.
    """
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"student points {tuple(student.shape)} and teacher points {tuple(teacher.shape)} "
            "differ in number"
        )
    groups, points, _ = student.shape
    if over.mask.shape != (groups, points) and (groups, *over.mask.shape) != (1, points):
        raise ValueError(
            f"points {tuple(student.shape)} are not one per {over.kind} ({tuple(over.mask.shape)})"
        )
    if around is not None and (around.shape[0] not in (1, groups) or around.shape[1] != points):
        raise ValueError(
            f"around {tuple(around.shape)} does not list the neighbors of each of the points "
            f"{tuple(student.shape)}"
        )
    losses = AngleLosses(over, delta, around)
    return Term(differentiable(losses, [student], [teacher.detach()]), over)


def windows(points: int, size: int, device: torch.device) -> Tensor:
    """Return the neighbors that each point of a sequence sees, as `around` for `angles`.

    Args:
        points: N.
        size: Points in a window, including the vertex in its middle: an odd number.
        device: Device of the points.

    Returns:
        int64 `[1, N, size]`.
    """
    middle = torch.arange(points, device=device).unsqueeze(-1)
    seen = middle + torch.arange(size, device=device) - size // 2
    return seen.masked_fill(seen >= points, -1).clamp(min=-1).unsqueeze(0)


class Rays(NamedTuple):
    """The edges from some vertices to the points they see; g groups, v vertices, m points.

    Attributes:
        directions: Unit vectors, or 0 where there is no edge, `[g, v, m, D]`.
        lengths: `[g, v, m, 1]`.
        ends: Indices of the seen points among the g N points of the groups, int64 `[g, v, m]`; None
            if every vertex sees all N.
        pairs: Ordered pairs of edges of each vertex, `[g, v]`.
    """

    directions: Tensor
    lengths: Tensor
    ends: Tensor | None
    pairs: Tensor


class AngleLosses:
    """Per-vertex angle losses for `differentiable`, computed for a few vertices at a time."""

    mixes = True

    def __init__(self, over: Items, delta: float, around: Tensor | None) -> None:
        """Store the settings; arguments as for `angles`."""
        self.over = over
        self.delta = delta
        self.around = around

    def __call__(
        self,
        inputs: Sequence[Tensor | None],
        fixed: Sequence[Tensor | None],
        weights: Tensor | None,
        wanted: Sequence[bool],
    ) -> tuple[Tensor, Gradients]:
        """Return the losses `[*items]`, and the gradient of their weighted sum."""
        (student,), (teacher,) = inputs, fixed
        assert student is not None, "the points are always given"
        assert teacher is not None, "the points are always given"
        dtype = torch.promote_types(student.dtype, torch.float32)
        counts = self.over.mask.view(student.shape[:2])
        values = student.new_zeros(counts.shape, dtype=dtype)
        shares = None if weights is None else weights.view(counts.shape)
        gradient = student.new_zeros(student.shape, dtype=dtype) if wanted[0] else None
        with torch.autocast(student.device.type, enabled=False):
            for block in self._blocks(student.shape):
                rays = self._rays(student[block[0]].to(dtype), counts[block[0]], block)
                known = teacher[block[0]].to(dtype)
                targets = self._rays(known, counts[block[0]], block)
                difference = rays.directions @ rays.directions.mT
                difference -= targets.directions @ targets.directions.mT
                difference.diagonal(dim1=-2, dim2=-1).zero_()
                rates = 1 / rays.pairs.clamp(min=1)
                values[block] = rates * _huber(difference, self.delta)
                if gradient is not None:
                    rates = rates if shares is None else rates * shares[block]
                    slope = difference.clamp_(-self.delta, self.delta).mul_(rates[..., None, None])
                    _add(gradient, block, rays, _pull(slope, rays))
        return values.view(self.over.mask.shape), [gradient]

    def _rays(self, points: Tensor, counts: Tensor, block: tuple[slice, slice]) -> Rays:
        """Return the edges from a block's vertices, given the points and counts of its groups."""
        groups, vertices = block
        places = torch.arange(points.shape[1], device=points.device)
        if self.around is None:
            ends, seen, others = None, counts.unsqueeze(1), places
            towards = points.unsqueeze(1)
        else:
            others = self.around[groups if len(self.around) > 1 else slice(None), vertices]
            first = torch.arange(len(points), device=points.device) * points.shape[1]
            ends = others.clamp(min=0) + first[:, None, None]
            seen = counts.flatten()[ends] & (others >= 0)
            towards = points.flatten(0, 1)[ends]
        seen = seen & counts[:, vertices, None] & (others != places[vertices, None])
        # Points that do not count may hold anything, including infinities.
        edges = (towards - points[:, vertices].unsqueeze(2)).masked_fill_(~seen[..., None], 0.0)
        lengths = edges.norm(dim=-1, keepdim=True)
        number = seen.sum(-1)
        return Rays(
            edges.div_(lengths.where(lengths > 0, 1.0)), lengths, ends, number * (number - 1)
        )

    def _blocks(self, shape: Sequence[int]) -> Iterator[tuple[slice, slice]]:
        """Yield blocks of groups and vertices small enough in cosines and edges for one chunk."""
        groups, points, width = shape
        seen = points if self.around is None else self.around.shape[-1]
        vertices = max(1, chunked.CHUNK_ELEMENTS // max(1, seen * max(seen, width)))
        for group in range(0, groups, step := max(1, vertices // max(1, points))):
            for vertex in range(0, points, vertices):
                yield slice(group, group + step), slice(vertex, vertex + vertices)


def _pull(slope: Tensor, rays: Rays) -> Tensor:
    """Return the gradient with respect to x_i - x_j, `[g, v, m, D]`, given that of the cosines."""
    edges, lengths = rays.directions, rays.lengths
    towards = 2 * slope @ edges
    across = towards - edges * (edges * towards).sum(-1, keepdim=True)
    return torch.where(lengths > 0, across / lengths, 0.0)


def _add(gradient: Tensor, block: tuple[slice, slice], rays: Rays, pull: Tensor) -> None:
    """Add the gradient of the edges to that of the points they start and end at."""
    group = gradient[block[0]]
    if rays.ends is None:
        group += pull.sum(1)
    else:
        group.view(-1, group.shape[-1]).index_add_(0, rays.ends.flatten(), pull.flatten(0, 2))
    gradient[block] -= pull.sum(2)


def _huber(difference: Tensor, delta: float) -> Tensor:
    """Return the Huber loss summed over the pairs."""
    size = difference.abs()
    near = size.clamp(max=delta)
    return (near * (size - near / 2)).sum((-2, -1))
