"""The plain mean over the teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gkd_core import Batch, Step, TeacherCombiner, Term


class Average(TeacherCombiner):
    """Average the terms over the teachers: every teacher counts alike."""

    name = "average"
    paper = "You, Xu, Xu, Tao, KDD 2017, doi:10.1145/3097983.3098135"

    def combine(
        self, terms: Sequence[Mapping[str, Term]], batch: Batch, step: Step
    ) -> Mapping[str, Term]:
        """Return the mean of each term."""
        first, *others = terms
        return {
            name: (1 / len(terms)) * sum((each[name] for each in others), term)
            for name, term in first.items()
        }
