"""`check_method`: checks of the properties that every method must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch.distributed import ProcessGroup

from gkd_core.contract.method import Method
from gkd_core.contract.schedule import ALWAYS_1
from gkd_core.objective.step_plan import ActiveMethod
from gkd_core.testing.option_values import option_values
from gkd_core.testing.ranks import on_ranks
from gkd_core.testing.trial import (
    TinyStage,
    check_at_edges,
    check_kinds,
    check_shared,
    generator,
)


def check_method(
    method: type[Method],
    options: Mapping[str, Any] | None = None,
    kinds: Sequence[str] | None = None,
    ranks: int = 1,
    first_step: int = 0,
) -> None:
    """Check a method on tiny models of each of its kinds of task, in fp64.

    The losses are finite (also for few rows, without labels unless they are needed, and for rows
    without a target) and reach the student, the teacher does not change, neither padding (on either
    side of a decoder's rows) nor the order of the rows matters, micro-batches give the gradient of
    the whole batch (unless the method declares `batch_coupled`), queries about a step have no side
    effects, the loss changes nothing that others read, and a method that restores its saved state
    continues as if never interrupted.

    Args:
        method: The class.
        options: Options that differ from their defaults. Without, the method is checked with its
            defaults, and with each option at each of its choices and bounds.
        kinds: Kinds of task to check on, except those whose models the method's `check` rejects.
            Default: all that the method declares.
        ranks: Number of processes. With 2, losses and gradients are checked under tensor
            parallelism, too; the class stands at the top of a module.
        first_step: Index of the first step in which the method has a loss, if it waits.

    Raises:
        AssertionError: A property does not hold; the message says which.
        MethodError: The method rejects the models of every kind.
    """
    kinds, given = kinds or method.kinds, options or {}
    check_kinds(lambda kind: MethodTrial(method, given, kind, first_step), kinds)
    for changed in option_values(method.Config) if options is None else ():
        check_at_edges(partial(MethodTrial, method, changed, first_step=first_step), kinds)
    if ranks > 1:
        on_ranks(ranks, _check_rank, method, given, kinds, first_step)


def _check_rank(
    method: type[Method], options: Mapping[str, Any], kinds: Sequence[str], first_step: int
) -> None:
    check_shared(lambda kind, group: MethodTrial(method, options, kind, first_step, group), kinds)


class MethodTrial(TinyStage):
    """A method with one teacher, or none if it reads none."""

    def __init__(
        self,
        method: type[Method],
        options: Mapping[str, Any],
        kind: str,
        first_step: int = 0,
        group: ProcessGroup | None = None,
        family: str = "",
    ) -> None:
        self.method, self.first_step = method, first_step
        super().__init__(method, options, kind, group, family)

    def member(self) -> ActiveMethod:
        """Return a new instance of the method."""
        (models,) = self.models
        if self.method.teachers == "none":
            models = replace(models, teacher=None)
        instance = self.method(self.method.Config(**self.options))
        instance.check(models)
        return ActiveMethod(self.method.name, ALWAYS_1, (instance,), (models,), generator())
