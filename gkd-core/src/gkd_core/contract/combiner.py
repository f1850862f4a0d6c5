"""`TeacherCombiner`: how much each of several teachers counts, sample by sample."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gkd_core.contract.method_base import MethodBase, validate

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gkd_core.contract.batch import Batch
    from gkd_core.contract.model_info import Models
    from gkd_core.contract.step import Step
    from gkd_core.hooks.features import View
    from gkd_core.hooks.paths import Capture
    from gkd_core.losses.term import Term


class TeacherCombiner(MethodBase):
    """Makes one set of loss terms of those that methods give for each teacher.

    A method is asked once per teacher; its term is the sum of the answers, each times the weight
    that the combiner gives to the teacher for the sample. One object serves all teachers of a
    stage, and all methods between the parentheses of `NAME(pkd+soft)`.

    Attributes:
        splits_student: Methods see another prediction of the student for each teacher (`logits`),
            so that it has something to combine even of those which read no teacher.
        models: The student and each teacher, in the order of the configuration.
    """

    splits_student: ClassVar[bool] = False

    def __init__(self, config: Any, models: Sequence[Models]) -> None:
        super().__init__(config)
        self.models = models

    def __init_subclass__(cls) -> None:
        """Refuse a subclass that breaks the contract when its class is defined."""
        super().__init_subclass__()
        validate(cls, "combiner")

    def check(self) -> None:
        """Raise `MethodError` if it cannot work with `models`. Default: it can.

        Called before any weight is loaded.
        """

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Return the paths that it reads itself, asked for each teacher. Default: none."""
        return ()

    def build_modules(self) -> Mapping[str, nn.Module]:
        """Return trainable auxiliary modules, by name. Default: none."""
        return {}

    def weight(
        self, number: int, student: View, teacher: View, batch: Batch, step: Step
    ) -> float | Tensor:
        """Return what the terms of a teacher are multiplied by. No gradient flows through it.

        Asked for one teacher after the other, in every micro-batch.

        Args:
            number: Which teacher.
            student: What `reads` asked of the student.
            teacher: What it asked of this teacher.
            batch: The micro-batch.
            step: Where training stands.

        Returns:
            A number, or one per sample `[B]`.
        """
        raise NotImplementedError

    def term_scale(
        self, reads: Collection[Capture], student: View, batch: Batch, step: Step
    ) -> float | Tensor:
        """Return what the terms of a method are multiplied by, whatever the teacher. Default: 1.

        No gradient flows through it. Asked for one method after the other, in every micro-batch.

        Args:
            reads: What the method reads of the teacher, in the main pass.
            student: What `reads` of the combiner asked of the student.
            batch: The micro-batch.
            step: Where training stands.

        Returns:
            A number, or one per sample `[B]`.
        """
        return 1.0

    def logits(self, number: int, student: View) -> Tensor | None:
        """Return the student's logits as methods see them for a teacher. Default: as they are.

        Args:
            number: Which teacher.
            student: What `reads` asked of the student, with gradient.
        """
        return None

    def loss(
        self, student: View, terms: Mapping[str, Term], batch: Batch, step: Step
    ) -> Mapping[str, Term | Tensor]:
        """Return loss terms of its own, for its auxiliary modules. Default: none.

        Args:
            student: What `reads` asked of the student.
            terms: The combined terms of its methods, unweighted.
            batch: The micro-batch.
            step: Where training stands.
        """
        return {}
