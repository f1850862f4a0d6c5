"""`check_method`: checks of the properties that every method must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.distributed import ProcessGroup

from gkd_core.contract.method import Method
from gkd_core.contract.schedule import ALWAYS_1
from gkd_core.objective.step_plan import ActiveMethod
from gkd_core.testing.ranks import on_ranks
from gkd_core.testing.trial import KINDS, TinyStage, check_kinds, check_shared, generator


def check_method(
    method: type[Method],
    options: Mapping[str, Any] | None = None,
    kinds: Sequence[str] = KINDS,
    ranks: int = 1,
) -> None:
    """Check a method on a tiny encoder and a tiny decoder, in fp64.

    The losses are finite and reach the student, the teacher does not change, neither padding nor
    the order of the rows matters, micro-batches give the gradient of the whole batch (unless the
    method declares `batch_coupled`), queries about a step have no side effects, and a method that
    restores its saved state continues as if never interrupted.

    Args:
        method: The class.
        options: Options that differ from their defaults.
        kinds: Kinds of task to check on, except those whose models the method's `check` rejects.
        ranks: Number of processes. With 2, losses and gradients are checked under tensor
            parallelism, too; the class stands at the top of a module.

    Raises:
        AssertionError: A property does not hold; the message says which.
        MethodError: The method rejects the models of every kind.
    """
    check_kinds(lambda kind: MethodTrial(method, options or {}, kind), kinds)
    if ranks > 1:
        on_ranks(ranks, _check_rank, method, options or {}, kinds)


def _check_rank(method: type[Method], options: Mapping[str, Any], kinds: Sequence[str]) -> None:
    check_shared(lambda kind, group: MethodTrial(method, options, kind, group), kinds)


class MethodTrial(TinyStage):
    """A method with one teacher, or none if it reads none."""

    def __init__(
        self,
        method: type[Method],
        options: Mapping[str, Any],
        kind: str,
        group: ProcessGroup | None = None,
    ) -> None:
        self.method = method
        super().__init__(method, options, kind, group)

    def member(self) -> ActiveMethod:
        """Return a new instance of the method."""
        (models,) = self.models
        if self.method.teachers == "none":
            models = replace(models, teacher=None)
        instance = self.method(self.method.Config(**self.options))
        instance.check(models)
        return ActiveMethod(self.method.name, ALWAYS_1, (instance,), (models,), generator())
