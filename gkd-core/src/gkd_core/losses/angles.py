"""Angle-wise relations: the angles of the triangles that points form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gkd_core.data.batch import Items
from gkd_core.losses import chunked
from gkd_core.losses.gradient import Gradients, differentiable
from gkd_core.losses.term import Term


def angles(student: Tensor, teacher: Tensor, over: Items, delta: float = 1.0) -> Term:
    """Huber loss between the cosines of the angles that student and teacher see at every point.

    Angle-wise distillation, RKD-A (Park et al., 2019): at vertex j, for every other two points i
    and k, the cosine of the angle between x_i - x_j and x_k - x_j. The loss of a vertex is the mean
    over the pairs i != k of points that count; it is 0 where there are fewer than three such
    points. Unchanged by rotation, translation and positive scaling. Cosines differ by at most 2,
    so that `delta=2` gives half the squared error.

    Args:
        student: Points `[G, N, D]`; triangles are formed within each of the G groups.
        teacher: Points `[G, N, D']`, constant.
        over: The vertices, `[G, N]`, or `[N]` if G is 1.
        delta: Difference up to which the loss is half the square.

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
    return Term(differentiable(AngleLosses(teacher, over, delta), student), over)


class AngleLosses:
    """One loss per vertex, as `differentiable` wants them; only some vertices at a time."""

    mixes = True

    def __init__(self, teacher: Tensor, over: Items, delta: float) -> None:
        """Note what to compute; arguments as for `angles`."""
        self.teacher = teacher.detach()
        self.over = over
        self.delta = delta

    def __call__(
        self, inputs: Sequence[Tensor | None], weights: Tensor | None, wanted: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        """Return the losses `[*items]`, and the gradient of their weighted sum."""
        (student,) = inputs
        assert student is not None, "the points are always given"
        dtype = torch.promote_types(student.dtype, torch.float32)
        counts = self.over.mask.view(student.shape[:2])
        others = counts.sum(-1, keepdim=True) - 1
        rates = counts.to(dtype) / (others * (others - 1)).clamp(min=1)
        values = torch.zeros_like(rates)
        shares = rates if weights is None else rates * weights.view_as(rates)
        gradient = torch.zeros_like(student, dtype=dtype) if wanted[0] else None
        with torch.autocast(student.device.type, enabled=False):
            for group, vertices in _blocks(student.shape):
                edges, lengths = _edges(student[group], counts[group], vertices, dtype)
                targets, _ = _edges(self.teacher[group], counts[group], vertices, dtype)
                difference = edges @ edges.mT - targets @ targets.mT
                difference.diagonal(dim1=-2, dim2=-1).zero_()
                values[group, vertices] = _huber(difference, self.delta)
                if gradient is not None:
                    slope = difference.clamp_(-self.delta, self.delta)
                    slope.mul_(shares[group, vertices, None, None])
                    pull = _pull(slope, edges, lengths)
                    gradient[group] += pull.sum(1)
                    gradient[group, vertices] -= pull.sum(2)
        return (values * rates).view(self.over.mask.shape), [gradient]


def _edges(
    points: Tensor, counts: Tensor, vertices: slice, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the directions from vertices to all points, 0 where there is none, and the lengths.

    Args:
        points: `[g, N, D]`.
        counts: The points that count, bool `[g, N]`.
        vertices: Slice of N with v vertices.
        dtype: Type to compute in.

    Returns:
        Unit vectors `[g, v, N, D]` and `[g, v, N, 1]`.
    """
    points = points.to(dtype).masked_fill(~counts[..., None], 0.0)
    edges = points[:, None] - points[:, vertices, None]
    edges = edges.masked_fill_(~counts[:, None, :, None], 0.0)
    lengths = edges.norm(dim=-1, keepdim=True)
    return edges.div_(lengths.where(lengths > 0, 1.0)), lengths


def _pull(slope: Tensor, edges: Tensor, lengths: Tensor) -> Tensor:
    """Return the gradient with respect to x_i - x_j, `[g, v, N, D]`, of that of the cosines."""
    towards = 2 * slope @ edges
    across = towards - edges * (edges * towards).sum(-1, keepdim=True)
    return torch.where(lengths > 0, across / lengths, 0.0)


def _huber(difference: Tensor, delta: float) -> Tensor:
    """Return the sum over the pairs."""
    size = difference.abs()
    near = size.clamp(max=delta)
    return (near * (size - near / 2)).sum((-2, -1))


def _blocks(shape: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Cut groups and vertices so that the cosines and edges of a block are few enough."""
    groups, points, width = shape
    vertices = max(1, chunked.CHUNK_ELEMENTS // (points * max(points, width)))
    for group in range(0, groups, step := max(1, vertices // points)):
        for vertex in range(0, points, vertices):
            yield slice(group, group + step), slice(vertex, vertex + vertices)
