"""Distances between a feature of the student and one of the teacher, for probes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gkd_core.contract.batch import Items
from gkd_core.hooks.paths import LOGITS, POOLED, Capture
from gkd_core.losses.distances import cosine, mse
from gkd_core.losses.relation import Relation, self_relation
from gkd_core.losses.relation_losses import relation_kl, relation_mse
from gkd_core.losses.similarity import unbiased_cka
from gkd_core.losses.soft_labels import logits_mse, soft_labels
from gkd_core.losses.term import Term

if TYPE_CHECKING:
    from gkd_core.contract.batch import Batch
    from gkd_core.contract.model_info import ModelInfo, Models
    from gkd_core.hooks.features import View

HEADED = ("query", "key", "value")
"""Sites whose vectors are divided into heads: `[B, A, S, Dh]`."""


class Sides(NamedTuple):
    """Both sides of a comparison on one micro-batch.

    Attributes:
        student: What is captured of the student.
        teacher: What is captured of the teacher.
        of: The student's tensor.
        to: The teacher's tensor.
        batch: The micro-batch.
    """

    student: View
    teacher: View
    of: Capture
    to: Capture
    batch: Batch

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Return the vectors of both: `[B, S, D]`, or `[B, D]` of whole rows."""
        return _vectors(self.student, self.of), _vectors(self.teacher, self.to)

    def items(self, vectors: Tensor) -> Items:
        """Return the items that vectors belong to: tokens that are not padding, or rows."""
        if not _is_of_rows(self.of):
            return self.batch.tokens
        rows = torch.arange(len(vectors), device=vectors.device)
        return Items("sample", torch.ones_like(rows, dtype=torch.bool), rows)


Measure: TypeAlias = Callable[[Sides], Term | Tensor]
"""Returns a distance per item, or a number that all ranks have computed together."""


@dataclass(frozen=True)
class ProbeDistance:
    """A distance of two features.

    Attributes:
        name: Its name in records, such as `mse` or `kl@2`.
        measure: Computes it.
        obstacle: Returns why two models do not allow it at a site, or None if they do.
    """

    name: str
    measure: Measure
    obstacle: Callable[[Capture, Models], str | None]


def distances_of(capture: Capture, temperatures: Sequence[float]) -> Iterator[ProbeDistance]:
    """Yield the distances that are defined for a feature.

    Args:
        capture: The student's tensor.
        temperatures: Temperatures of the divergences.
    """
    if capture == LOGITS:
        yield from _divergences(_kl_of_logits, _no_distributions, temperatures)
        yield ProbeDistance("mse", _mse_of_logits, _unequal_outputs)
    elif capture.site == "attention":
        yield from _divergences(_kl_of_attention, _unequal_heads, temperatures)
        yield ProbeDistance("mse", _mse_of_attention, _unequal_heads)
    elif capture.site not in ("scores", "probs"):
        yield ProbeDistance("mse", _mse, _unequal_widths)
        yield ProbeDistance("cosine", _cosine, _unequal_widths)
        yield ProbeDistance("1-cka", _cka, _nothing)
        if not _is_of_rows(capture):
            yield ProbeDistance("relation", _relation, _nothing)


def _is_of_rows(capture: Capture) -> bool:
    """Return whether there is one vector per row, not one per position."""
    return capture == POOLED or bool(capture.reduce)


def _divergences(
    measure: Callable[[float, Sides], Term],
    obstacle: Callable[[Capture, Models], str | None],
    temperatures: Sequence[float],
) -> Iterator[ProbeDistance]:
    for temperature in temperatures:
        softened = partial(measure, temperature)
        yield ProbeDistance(f"kl@{temperature:g}", softened, obstacle)


def _mse(sides: Sides) -> Term:
    student, teacher = sides.vectors()
    return mse(student, teacher, sides.items(student))


def _cosine(sides: Sides) -> Term:
    student, teacher = sides.vectors()
    return cosine(student, teacher, sides.items(student))


def _cka(sides: Sides) -> Tensor:
    """Return one minus the similarity, so that it is a distance as the others are."""
    student, teacher = sides.vectors()
    index = sides.items(student).index[: None if sides.batch.counted else 0]
    return 1 - unbiased_cka(student.flatten(0, -2)[index], teacher.flatten(0, -2)[index])


def _relation(sides: Sides) -> Term:
    """Return the divergence of the relations among a row's positions, as in MiniLMv2."""
    heads = math.gcd(
        sides.student.model.heads,
        _width(sides.of, sides.student.model),
        _width(sides.of, sides.teacher.model),
    )
    student, teacher = (
        _related(view, capture, heads, sides.batch.mask)
        for view, capture in ((sides.student, sides.of), (sides.teacher, sides.to))
    )
    return relation_kl(student, teacher, sides.batch.tokens)


def _related(view: View, capture: Capture, heads: int, mask: Tensor) -> Relation:
    if capture.site in HEADED:
        return view.relate(capture, heads, mask)
    return self_relation(view[capture], heads, mask)


def _kl_of_attention(temperature: float, sides: Sides) -> Term:
    student, teacher = (
        _softened(relation, temperature)
        for relation in (sides.student.relation(sides.of), sides.teacher.relation(sides.to))
    )
    return relation_kl(student, teacher, sides.batch.tokens)


def _softened(relation: Relation, temperature: float) -> Relation:
    bias = None if relation.bias is None else relation.bias / temperature
    return replace(relation, scale=relation.scale / temperature, bias=bias)


def _mse_of_attention(sides: Sides) -> Term:
    return relation_mse(
        sides.student.relation(sides.of), sides.teacher.relation(sides.to), sides.batch.tokens
    )


def _kl_of_logits(temperature: float, sides: Sides) -> Term:
    student, teacher = sides.student.prediction, sides.teacher.prediction
    return soft_labels(student, teacher, sides.batch.targets, temperature, scale=False)


def _mse_of_logits(sides: Sides) -> Term:
    return logits_mse(sides.student.prediction, sides.teacher.prediction, sides.batch.targets)


def _vectors(view: View, capture: Capture) -> Tensor:
    tensor = view[capture]
    return tensor.transpose(1, 2).flatten(2) if capture.site in HEADED else tensor


def _width(capture: Capture, info: ModelInfo) -> int:
    """Return the width of a feature's vectors."""
    if capture.site in HEADED:
        heads = info.heads if capture.site == "query" else info.kv_heads
        return heads * info.head_size
    return capture.shape(info, 1, 1)[-1]


def _nothing(capture: Capture, models: Models) -> str | None:
    return None


def _unequal_widths(capture: Capture, models: Models) -> str | None:
    student, teacher = (_width(capture, info) for info in models.pair)
    return None if student == teacher else f"the widths {student} and {teacher} differ"


def _unequal_heads(capture: Capture, models: Models) -> str | None:
    student, teacher = models.pair
    if student.heads == teacher.heads:
        return None
    return f"the numbers of heads {student.heads} and {teacher.heads} differ"


def _unequal_outputs(capture: Capture, models: Models) -> str | None:
    student, teacher = models.pair
    if student.is_lm or student.labels == teacher.labels:
        return None
    return f"the numbers of outputs {student.labels} and {teacher.labels} differ"


def _no_distributions(capture: Capture, models: Models) -> str | None:
    student, _ = models.pair
    if student.predicted == "vector" or student.labels == 1:
        return "they are no distributions"
    return _unequal_outputs(capture, models)
