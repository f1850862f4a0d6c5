"""The layers that a term compares and the capture paths that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gkd_core.api import Models, layer_pairs
from gkd_methods_intermediate.matching.knowledge import LAYERED
from gkd_methods_intermediate.matching.term import MatchTerm


@dataclass(frozen=True)
class Pair:
    """A pair of layers to compare; 0 is the embedding output, and is used for sites without layers.

    Attributes:
        student: Student layers of the two factors of a product; equal unless the term has a
            `span`.
        teacher: Likewise for the teacher.
    """

    student: tuple[int, int]
    teacher: tuple[int, int]

    @classmethod
    def of(cls, student: int, teacher: int) -> Pair:
        """Return a pair with one layer of each model."""
        return cls((student, student), (teacher, teacher))


def fixed_pairs(term: MatchTerm, student_layers: int, teacher_layers: int) -> list[Pair]:
    """Return the pairs that do not depend on costs.

    Raises:
        MethodError: The layers do not fit the depth of the models.
    """
    if term.site not in LAYERED:
        return [Pair.of(0, 0)]
    found = [(0, 0)] if term.embedding else []
    if term.layers != "emd" and term.layers != "monotone":
        found += layer_pairs(term.layers, student_layers, teacher_layers)
    return [
        Pair((s, upper_s), (t, upper_t))
        for (s, t), (upper_s, upper_t) in zip(found, found[term.span :], strict=False)
    ]


def layers_read(
    term: MatchTerm, student_layers: int, teacher_layers: int
) -> tuple[list[int], list[int]]:
    """Return the student and teacher layers that may be compared, in ascending order."""
    pairs = fixed_pairs(term, student_layers, teacher_layers)
    student = {layer for pair in pairs for layer in pair.student}
    teacher = {layer for pair in pairs for layer in pair.teacher}
    if term.is_assigned:
        student.update(range(1, student_layers + 1))
        teacher.update(range(1, teacher_layers + 1))
    return sorted(student), sorted(teacher)


def paths(term: MatchTerm, models: Models) -> Iterator[str]:
    """Yield the capture paths of all layers that may be compared."""
    student, teacher = models.pair
    own, known = layers_read(term, student.layers, teacher.layers)
    yield from (f"student.{_site(term, layer)}" for layer in own)
    yield from (f"teacher.{_site(term, layer)}" for layer in known)


def _site(term: MatchTerm, layer: int) -> str:
    reducer = f"|{term.positions}" if term.positions in ("cls", "mean") else ""
    if term.site == "normed":
        return f"hidden[last].normed{reducer}"
    return f"{term.site}[{layer}]{reducer}" if term.site in LAYERED else f"{term.site}{reducer}"
