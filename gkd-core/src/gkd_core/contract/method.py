"""`Method`: what a distillation method declares. The whole contract of a method plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from gkd_core.contract.method_base import MethodBase, validate
from gkd_core.errors import PluginError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from gkd_core.contract.batch import Batch
    from gkd_core.contract.model_info import Models
    from gkd_core.contract.step import Step
    from gkd_core.hooks.features import View
    from gkd_core.losses.term import Term


class Method(MethodBase):
    """One distillation method: a named contribution of loss terms.

    A subclass sets `name` and `paper`, says in `reads` what it needs from the models, and computes
    its terms in `loss`. Its docstring is what `gkd methods NAME` shows.

    Attributes:
        min_samples: Samples that a micro-batch needs at least, over all ranks that share it; a run
            with fewer is refused.
        teachers: `one` (with several, each has a method object of its own) or `none`.
    """

    min_samples: ClassVar[int] = 1
    teachers: ClassVar[Literal["one", "none"]] = "one"

    def __init_subclass__(cls) -> None:
        """Refuse a subclass that breaks the contract when its class is defined."""
        super().__init_subclass__()
        validate(cls, "method")
        if cls.teachers not in ("one", "none"):
            raise PluginError(
                f"method class {cls.__module__}.{cls.__qualname__}: `teachers` must be 'one' or "
                f"'none', not {cls.teachers!r}"
            )

    def check(self, models: Models) -> None:
        """Raise `MethodError` if the method cannot work with these models. Default: it can.

        Called before any weight is loaded.
        """

    def build_modules(self, models: Models) -> Mapping[str, nn.Module]:
        """Return trainable auxiliary modules, by name. Default: none.

        They are seeded like the student; reach them as `self.modules` in `loss`.
        """
        return {}

    def finalize_student(self, student: PreTrainedModel, directory: Path) -> PreTrainedModel:
        """Return the model that the stage hands on, made of its student. Default: the student.

        Called when training is over, in every rank; the student stays as it is.

        Args:
            student: The student as trained.
            directory: The stage's; safetensors files in it last until the stage is finished.
        """
        return student

    def loss(
        self, student: View, teacher: View, batch: Batch, step: Step
    ) -> Mapping[str, Term | Tensor]:
        """Return the loss terms by name.

        Args:
            student: What `reads` asked of the student, with gradient.
            teacher: What `reads` asked of the teacher, without. Empty if `teachers` is `none`.
            batch: The micro-batch.
            step: Where training stands.

        Returns:
            For each term a `Term` (as the primitives of `gkd_core.losses` return it), a tensor
            `[B]` with a loss per sample, or a scalar: the mean over the micro-batch's samples.
        """
        raise NotImplementedError
