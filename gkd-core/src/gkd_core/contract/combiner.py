"""`TeacherCombiner`: the weight of each of several teachers, per sample."""

from __future__ import annotations

from abc import abstractmethod
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
    """Combines the loss terms that methods return for each of several teachers.

    A method is called once per teacher; its term is the sum of the results, each multiplied by the
    weight that the combiner gives the teacher for the sample. One instance serves all teachers of a
    stage, and all methods between the parentheses of `NAME(pkd+soft)`.

    A subclass sets `name` and `paper` and overrides `weight`; it is registered through
    `gkd_register_combiners`. Its docstring is what `gkd methods NAME` shows.

    Attributes:
        splits_student: Methods see different student logits for each teacher (`logits`), so that
            there is something to combine even for methods that read no teacher.
        weighs_samples: The weights of teachers may differ between the samples of a micro-batch.
        models: The student with each teacher, in the order of the configuration.
    """

    splits_student: ClassVar[bool] = False
    weighs_samples: ClassVar[bool] = True

    def __init__(self, config: Any, models: Sequence[Models]) -> None:
        super().__init__(config)
        self.models = models

    def __init_subclass__(cls) -> None:
        """Reject a subclass that violates the contract when its class is defined."""
        super().__init_subclass__()
        validate(cls, "combiner")

    def check(self) -> None:
        """Raise `MethodError` for unsupported models. Default: all are supported.

        Called before any weight is loaded.
        """

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Return the paths that the combiner itself reads in this step. Default: none.

        Args:
            models: The student and one teacher; called for each teacher.
            step: The training step.
        """
        return ()

    def build_modules(self) -> Mapping[str, nn.Module]:
        """Return trainable auxiliary modules by name; they become `self.modules`. Default: none."""
        return {}

    @abstractmethod
    def weight(
        self, number: int, student: View, teacher: View, batch: Batch, step: Step
    ) -> float | Tensor:
        """Return the weight of a teacher's terms. No gradient flows through it.

        Called for one teacher after the other, in every micro-batch.

        Args:
            number: Index of the teacher in `models`.
            student: The student's tensors requested in `reads`.
            teacher: This teacher's tensors requested in `reads`.
            batch: The micro-batch.
            step: The training step.

        Returns:
            A number, or a tensor `[B]` with one per sample.
        """
        raise NotImplementedError

    def normalize(self, weights: Sequence[float | Tensor]) -> Sequence[float | Tensor]:
        """Return the weights of all teachers, given those of `weight`. Default: unchanged.

        For weights that depend on each other, such as a softmax over the teachers. No gradient
        flows through it. Called once in every micro-batch.

        Args:
            weights: A number or a tensor `[B]` for each teacher, in the order of `models`.
        """
        return weights

    def term_scale(
        self, reads: Collection[Capture], student: View, batch: Batch, step: Step
    ) -> float | Tensor:
        """Return the scale of a method's terms, the same for every teacher. Default: 1.

        No gradient flows through it. Called for one method after the other, in every micro-batch.

        Args:
            reads: The teacher's tensors that the method reads in the main pass.
            student: The student's tensors requested in the combiner's `reads`.
            batch: The micro-batch.
            step: The training step.

        Returns:
            A number, or a tensor `[B]` with one per sample.
        """
        return 1.0

    def logits(self, number: int, student: View) -> Tensor | None:
        """Return the student's logits that methods see for a teacher. Default: None, unchanged.

        Args:
            number: Index of the teacher in `models`.
            student: The student's tensors requested in `reads`, with gradient.

        Returns:
            Logits of the shape of the student's, or None to leave them unchanged.
        """
        return None

    def loss(
        self, student: View, terms: Mapping[str, Term], batch: Batch, step: Step
    ) -> Mapping[str, Term | Tensor]:
        """Return additional loss terms, such as for its auxiliary modules. Default: none.

        Args:
            student: The student's tensors requested in `reads`.
            terms: The combined terms of its methods, unweighted.
            batch: The micro-batch.
            step: The training step.

        Returns:
            Terms by name, in any form that `Method.loss` may return.
        """
        return {}
