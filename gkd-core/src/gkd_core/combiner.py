"""`TeacherCombiner`: how the loss terms of several teachers become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from gkd_core.data.batch import Batch
    from gkd_core.losses.term import Term
    from gkd_core.method import Step


class TeacherCombiner:
    """Combines the terms that one method gave for each teacher.

    Used when a run has several teachers and a method takes one: the method is asked once per
    teacher, and the combiner makes one set of terms of the answers.

    Attributes:
        name: What the setting `combiner` accepts.
        paper: Where it was published.
    """

    name: ClassVar[str]
    paper: ClassVar[str]

    def combine(
        self, terms: Sequence[Mapping[str, Term]], batch: Batch, step: Step
    ) -> Mapping[str, Term]:
        """Return the combined terms.

        Args:
            terms: One mapping per teacher, in the order of the configuration, with equal keys.
            batch: The micro-batch.
            step: Where training stands.
        """
        raise NotImplementedError
