"""`check_combiner`: checks of the properties that every combiner of teachers must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.distributed import ProcessGroup

from gkd_core.contract.batch import Batch
from gkd_core.contract.combiner import TeacherCombiner
from gkd_core.contract.method import Method
from gkd_core.contract.model_info import Models
from gkd_core.contract.schedule import ALWAYS_1
from gkd_core.contract.step import Step
from gkd_core.hooks.features import View
from gkd_core.losses import Term, mse
from gkd_core.objective.ensemble import TeacherEnsemble
from gkd_core.objective.step_plan import ActiveMethod
from gkd_core.testing.ranks import on_ranks
from gkd_core.testing.trial import KINDS, TinyStage, check_kinds, check_shared, generator


def check_combiner(
    combiner: type[TeacherCombiner],
    options: Mapping[str, Any] | None = None,
    kinds: Sequence[str] = KINDS,
    ranks: int = 1,
) -> None:
    """Check a combiner of two teachers as `check_method` checks a method.

    It combines the squared distances of the student's logits to those of each teacher.

    Args:
        combiner: The class.
        options: Options that differ from their defaults.
        kinds: Kinds of task to check on, except those whose models the combiner's `check` rejects.
        ranks: Number of processes. With 2, losses and gradients are checked under tensor
            parallelism, too; the class stands at the top of a module.

    Raises:
        AssertionError: A property does not hold; the message says which.
        MethodError: The combiner rejects the models of every kind.
    """
    check_kinds(lambda kind: CombinerTrial(combiner, options or {}, kind), kinds)
    if ranks > 1:
        on_ranks(ranks, _check_rank, combiner, options or {}, kinds)


def _check_rank(
    combiner: type[TeacherCombiner], options: Mapping[str, Any], kinds: Sequence[str]
) -> None:
    check_shared(lambda kind, group: CombinerTrial(combiner, options, kind, group), kinds)


class CombinerTrial(TinyStage):
    """A combiner of two teachers."""

    teacher_layers = (4, 3)

    def __init__(
        self,
        combiner: type[TeacherCombiner],
        options: Mapping[str, Any],
        kind: str,
        group: ProcessGroup | None = None,
        family: str = "",
    ) -> None:
        self.combiner = combiner
        super().__init__(combiner, options, kind, group, family)

    def member(self) -> ActiveMethod:
        """Return the combined distance of the logits."""
        instance = self.combiner(self.combiner.Config(**self.options), self.models)
        instance.check()
        ensemble = TeacherEnsemble(self.combiner.name, ALWAYS_1, instance, self.models, generator())
        methods = tuple(_Distance() for _ in self.models)
        return ActiveMethod("distance", ALWAYS_1, methods, self.models, generator(), ensemble)


class _Distance(Method):
    """The squared distance of the logits."""

    name = "distance"
    paper = "gkd, for checks"

    def reads(self, models: Models, step: Step) -> Sequence[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the logits."""
        return {"distance": mse(student.logits, teacher.logits, batch.targets)}
