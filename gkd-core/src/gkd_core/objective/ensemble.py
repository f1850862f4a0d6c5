"""`TeacherEnsemble`: a combiner applied to the methods in its parentheses."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gkd_core.contract.batch import Batch
from gkd_core.contract.combiner import TeacherCombiner
from gkd_core.contract.model_info import Models
from gkd_core.contract.schedule import Schedule
from gkd_core.contract.step import Step
from gkd_core.hooks.features import View
from gkd_core.hooks.paths import Capture
from gkd_core.losses.term import Term
from gkd_core.plugins.answers import one_of, refused

if TYPE_CHECKING:
    from gkd_core.objective.captured import Captured
    from gkd_core.objective.step_plan import ActiveMethod, StepRequest


@dataclass(frozen=True, eq=False)
class TeacherEnsemble:
    """One combiner of an expression.

    Attributes:
        name: The combiner's name.
        weight: Factor of the terms in its parentheses and of its own.
        combiner: The combiner.
        models: The student and each teacher.
        generator: Generator for its random draws.
    """

    name: str
    weight: Schedule
    combiner: TeacherCombiner
    models: tuple[Models, ...]
    generator: torch.Generator

    takes_teacher = True

    @property
    def methods(self) -> tuple[TeacherCombiner, ...]:
        """The combiner, once per teacher, as an `ActiveMethod` has one object per teacher."""
        return (self.combiner,) * len(self.models)

    def factor(self, step: Step) -> float:
        """Return the weight of the combiner's own terms in the sum."""
        return self.weight.at(step)

    def detached_copy(self) -> TeacherEnsemble:
        """Return a copy with its own generator, so that previewing does not advance the RNG."""
        generator = torch.Generator().set_state(self.generator.get_state())
        return replace(self, generator=generator)

    def rehearsal_copy(self) -> TeacherEnsemble:
        """Return a copy on which a step can be begun without advancing the combiner's state."""
        return replace(self.detached_copy(), combiner=copy.deepcopy(self.combiner))


def ensembles(members: Iterable[ActiveMethod]) -> list[TeacherEnsemble]:
    """Return the distinct ensembles that methods belong to, sorted by name."""
    found = {m.ensemble.name: m.ensemble for m in members if m.ensemble is not None}
    return [found[name] for name in sorted(found)]


class EnsembleStep:
    """The computation of an ensemble on one micro-batch."""

    def __init__(
        self,
        ensemble: TeacherEnsemble,
        requests: Sequence[StepRequest],
        captured: Captured,
        batch: Batch,
        step: Step,
    ) -> None:
        """Compute the weight of every teacher.

        Args:
            ensemble: The ensemble.
            requests: Requests of its combiner, one per teacher.
            captured: The captured features.
            batch: The micro-batch.
            step: The position in training, with the ensemble's generator.
        """
        self.combiner = ensemble.combiner
        self._batch, self._step = batch, step
        self._learned = [captured.learned(one) for one in requests]
        with torch.no_grad():
            alone = [
                self._checked(
                    "weight",
                    self.combiner.weight(number, learned, captured.known(one), batch, step),
                )
                for number, (one, learned) in enumerate(zip(requests, self._learned, strict=True))
            ]
            self.weights = self._normalized(alone)

    def student(self, number: int, view: View) -> View:
        """Return a method's view of the student when it learns from teacher `number`."""
        logits = self.combiner.logits(number, self._learned[number])
        return view if logits is None else view.with_logits(logits)

    def combine(
        self, answers: Sequence[Mapping[str, Term]], reads: Collection[Capture]
    ) -> dict[str, Term]:
        """Return the weighted sum of each term over the teachers.

        Args:
            answers: The terms of one method, per teacher.
            reads: What the method reads from a teacher.
        """
        with torch.no_grad():
            scale = self.combiner.term_scale(reads, self._learned[0], self._batch, self._step)
            term_scale = self._checked("term_scale", scale)
        weights = [weight * term_scale for weight in self.weights]
        first, *others = answers
        return {
            name: sum(
                (_weigh(each[name], w) for each, w in zip(others, weights[1:], strict=True)),
                _weigh(term, weights[0]),
            )
            for name, term in first.items()
        }

    def _normalized(self, alone: Sequence[float | Tensor]) -> list[float | Tensor]:
        """Return the weights after the combiner has normalized them over the teachers."""
        wanted = f"{len(alone)} weights, one for each teacher"
        together = one_of(
            self.combiner, "normalize", self.combiner.normalize(alone), Sequence, wanted
        )
        if len(together) != len(alone):
            raise refused(self.combiner, "normalize", f"returned {len(together)}", wanted)
        return [self._checked("normalize", weight) for weight in together]

    def _checked(self, member: str, answer: float | Tensor) -> float | Tensor:
        """Return a weight, after checking that it is a number, or one for each sample.

        Raises:
            PluginError: It is something else. A tensor of another shape would be broadcast.
        """
        wanted = "a number, or a tensor with one for each sample"
        one_of(self.combiner, member, answer, (Real, Tensor), wanted)
        if isinstance(answer, Tensor) and answer.shape not in ((), (len(self._batch),)):
            shape = f"returned a tensor of shape {tuple(answer.shape)}"
            raise refused(self.combiner, member, shape, wanted)
        return answer

    def own_terms(self, terms: Mapping[str, Term]) -> Mapping[str, Term | Tensor]:
        """Return the combiner's own terms.

        Args:
            terms: The combined terms of its methods.
        """
        return self.combiner.loss(self._learned[0], terms, self._batch, self._step)


def _weigh(term: Term, weight: float | Tensor) -> Term:
    """Multiply a term by a weight, or each sample's items by that sample's weight."""
    if isinstance(weight, Tensor) and weight.dim() == 1 and term.values.dim() == 2:
        weight = weight.unsqueeze(1)
    return weight * term if isinstance(weight, float) else term * weight
