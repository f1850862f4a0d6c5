"""`Method`: the base class of distillation methods, and their whole contract."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from gkd_core.contract.method_base import MethodBase, check_defaults, validate
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

    A subclass sets `name` and `paper`, requests tensors of the models in `reads`, and computes its
    terms in `loss`; it is registered through `gkd_register_methods`. Its docstring is what
    `gkd methods NAME` shows.

    Attributes:
        min_samples: Minimum number of samples in a micro-batch, over all ranks that divide it; a
            run with fewer is rejected.
        teachers: `one` (with several, there is a separate instance for each) or `none`.
        kind_defaults: Defaults of options that differ for a kind of task, and for those that extend
            it: `{"causal-lm": {"temperature": 1.0}}`. Say so in the option's description.
        applies_head: It applies the head of its teacher (`View.head`); a teacher whose answers come
            without one is rejected.
        on_policy: It learns from text that the student draws from its own distribution; a run in
            which the student never writes (`rollout.student`), or draws from another one, is
            rejected. An estimate from the tokens weighs them by `importance`: a teacher may have
            taken part (`rollout.mixture`), or an older student written them (`rollout.replay`).
        models: Shapes of the student and its teacher; set before `check` is called.
    """

    models: Models
    min_samples: ClassVar[int] = 1
    teachers: ClassVar[Literal["one", "none"]] = "one"
    kind_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    applies_head: ClassVar[bool] = False
    on_policy: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Reject a subclass that violates the contract when its class is defined."""
        super().__init_subclass__()
        validate(cls, "method")
        if cls.teachers not in ("one", "none"):
            raise PluginError(
                f"method class {cls.__module__}.{cls.__qualname__}: `teachers` must be 'one' or "
                f"'none', not {cls.teachers!r}"
            )
        for kind, defaults in cls.kind_defaults.items():
            where = f"method class {cls.__module__}.{cls.__qualname__}: kind_defaults[{kind!r}]"
            check_defaults(cls.Config, defaults, where)

    def check(self, models: Models) -> None:
        """Raise `MethodError` for unsupported models. Default: all are supported.

        Called before any weight is loaded.
        """

    def build_modules(self, models: Models) -> Mapping[str, nn.Module]:
        """Return trainable auxiliary modules, by name. Default: none.

        They are seeded like the student, and are `self.modules` in `loss`.
        """
        return {}

    def finalize_student(self, student: PreTrainedModel, directory: Path) -> PreTrainedModel:
        """Return the final model of the stage, made from the trained student. Default: the student.

        Called on every rank after the last step.

        Args:
            student: The trained student; must not be modified.
            directory: Directory of the stage; safetensors files in it are deleted when the stage
                is finished.
        """
        return student

    def softens_at(self, step: Step) -> Collection[float] | None:
        """Return the temperatures at which the method compares distributions in this step.

        A method that does nothing else with the teacher's logits, and only at `batch.targets`, also
        learns from `TopKLogits` of that temperature; any other is rejected for a teacher whose
        answers are such.

        Args:
            step: The training step.

        Returns:
            The temperatures; None, the default, if it needs more of the logits.
        """
        return None

    @abstractmethod
    def loss(
        self, student: View, teacher: View, batch: Batch, step: Step
    ) -> Mapping[str, Term | Tensor]:
        """Return the loss terms by name.

        Args:
            student: The student's tensors requested in `reads`, with gradient.
            teacher: The teacher's, without gradient. Empty if `teachers` is `none`.
            batch: The micro-batch.
            step: The training step.

        Returns:
            For each term a `Term` (the return type of the loss functions in `gkd_core.api`), a
            tensor `[B]` with a loss per sample, or a scalar: the mean over the micro-batch's
            samples.
        """
        raise NotImplementedError
