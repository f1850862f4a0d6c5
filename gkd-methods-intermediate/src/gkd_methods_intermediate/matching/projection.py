"""Trainable projections of the student's vectors to the teacher's width."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from gkd_core.api import Models
from gkd_methods_intermediate.matching.layers import layers_read
from gkd_methods_intermediate.matching.shapes import width
from gkd_methods_intermediate.matching.term import MatchTerm
from gkd_methods_intermediate.projection import linear_projection


def projections(term: MatchTerm, models: Models) -> Iterator[tuple[str, nn.Module]]:
    """Yield the projections of a term by name: a single one, or one per student layer."""
    if not term.has_vectors:
        return
    student, teacher = (width(term.site, model) for model in models.pair)
    activation = term.projection
    if activation == "auto":
        activation = "none" if student == teacher else "linear"
    if activation == "none":
        return
    depths = (model.layers for model in models.pair)
    for name in _names(term, *depths):
        yield name, _build(activation, student, teacher)


def project(modules: nn.ModuleDict, term: MatchTerm, layer: int, vectors: Tensor) -> Tensor:
    """Return the student's vectors of a layer, projected if the term has a projection.

    Args:
        modules: The projections of all terms.
        term: The term.
        layer: The student's layer.
        vectors: `[*items, D_s]`.

    Returns:
        `[*items, D_t]` with a projection, otherwise the vectors.
    """
    for name in (term.name, _layer_name(term, layer)):
        if name in modules:
            projected: Tensor = modules[name](vectors)
            return projected
    return vectors


def _names(term: MatchTerm, student_layers: int, teacher_layers: int) -> list[str]:
    if not term.per_layer:
        return [term.name]
    layers, _ = layers_read(term, student_layers, teacher_layers)
    return [_layer_name(term, layer) for layer in layers]


def _layer_name(term: MatchTerm, layer: int) -> str:
    return f"{term.name} {layer}"


def _build(activation: str, student: int, teacher: int) -> nn.Module:
    linear = linear_projection(student, teacher)
    if activation == "linear":
        return linear
    return nn.Sequential(linear, nn.ReLU() if activation == "relu" else nn.Tanh())
