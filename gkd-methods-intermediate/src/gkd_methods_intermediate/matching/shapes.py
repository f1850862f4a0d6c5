"""Shape checks: whether a term can compare the two models."""

from __future__ import annotations

from gkd_core.api import MethodError, ModelInfo, Models
from gkd_methods_intermediate.matching.knowledge import HEADED, Site
from gkd_methods_intermediate.matching.layers import fixed_pairs
from gkd_methods_intermediate.matching.term import MatchTerm


def width(site: Site, model: ModelInfo) -> int:
    """Return the width of a site's vector at one position, with merged heads."""
    if site in ("query", "context"):
        return model.heads * model.head_size
    return model.kv_heads * model.head_size if site in HEADED else model.hidden_size


def head_count(term: MatchTerm, model: ModelInfo, other: ModelInfo) -> int:
    """Return the number of heads in which a model's token products are computed.

    Args:
        term: A term with the relation `tokens`.
        model: The model.
        other: The model it is compared with.
    """
    if isinstance(term.heads, int):
        return term.heads
    own = _heads(term.site, model)
    each = term.heads == "each" or (term.heads == "auto" and own == _heads(term.site, other))
    return own if each else 1


def check_shapes(term: MatchTerm, models: Models) -> None:
    """Reject models that a term cannot compare.

    Raises:
        MethodError: An option does not fit a size of the models.
    """
    student, teacher = models.pair
    _check_layers(term, student, teacher)
    _check_heads(term, student, teacher)
    _check_width(term, student, teacher)
    _check_positions(term, student)


def _check_layers(term: MatchTerm, student: ModelInfo, teacher: ModelInfo) -> None:
    if term.layers == "monotone" and student.layers > teacher.layers:
        raise MethodError(
            f"layers = 'monotone' requires a student no deeper than the teacher, but it has "
            f"{student.layers} blocks and the teacher {teacher.layers}; use 'emd'"
        )
    pairs = fixed_pairs(term, student.layers, teacher.layers)
    if not pairs and not term.is_assigned:
        raise MethodError(
            f"span = {term.span} requires more than {term.span} pairs of layers, but layers = "
            f"{term.layers!r} gives fewer. Lower span"
        )


def _check_heads(term: MatchTerm, student: ModelInfo, teacher: ModelInfo) -> None:
    counts = _heads(term.site, student), _heads(term.site, teacher)
    described = f"the student has {counts[0]} {_kind(term.site)} heads and the teacher {counts[1]}"
    if term.site == "attention" and term.heads in ("auto", "each") and counts[0] != counts[1]:
        raise MethodError(
            f"scores are compared head by head, but {described}. Use heads = 'mean' or 'sum' "
            "(knowledge 'attention-mse-sum', 'attention-ce-mean'), or a student with as many heads"
        )
    if term.relation == "tokens" and term.heads == "each" and counts[0] != counts[1]:
        raise MethodError(
            f"heads = 'each' compares head by head, but {described}. Use heads = 'merged' or a "
            "number of heads"
        )
    if term.relation != "tokens" or not isinstance(term.heads, int):
        return
    for model in (student, teacher):
        if width(term.site, model) % term.heads:
            raise MethodError(
                f"heads = {term.heads} must divide the width of {term.site}, which is "
                f"{width(term.site, model)} in {model.described}"
            )


def _check_width(term: MatchTerm, student: ModelInfo, teacher: ModelInfo) -> None:
    widths = width(term.site, student), width(term.site, teacher)
    if term.has_vectors and term.projection == "none" and widths[0] != widths[1]:
        raise MethodError(
            f"projection = 'none', but {term.site} is {widths[0]} wide in the student and "
            f"{widths[1]} in the teacher. Use projection = 'linear', or compare token products "
            "(relation = 'tokens'), which need no projection"
        )


def _check_positions(term: MatchTerm, student: ModelInfo) -> None:
    if term.site == "logits":
        if term.positions == "tokens" and not student.is_lm:
            raise MethodError(
                "positions = 'tokens' requires logits at every position, which a classifier does "
                "not have. Use positions = 'targets'"
            )
        if term.is_divergence and student.labels == 1:
            raise MethodError(
                f"distance '{term.distance}' compares distributions, but the models predict one "
                "value. Use knowledge 'logits-mse'"
            )
    elif term.positions == "targets" and "positions" in term.options() and not student.is_lm:
        raise MethodError(
            "positions = 'targets' selects the labeled positions of a language model, but the "
            "student is not one. Use positions = 'tokens'"
        )


def _heads(site: Site, model: ModelInfo) -> int:
    if site in ("query", "attention"):
        return model.heads
    return model.kv_heads if site in HEADED else 1


def _kind(site: Site) -> str:
    return "key-value" if site in ("key", "value") else "query"
