"""`match`: a distillation described as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from gkd_core.api import Batch, Method, MethodError, Models, Step, Term, View, sum_samples
from gkd_methods_intermediate.matching.assignment import Flow, monotone, transport
from gkd_methods_intermediate.matching.comparison import TermComparison
from gkd_methods_intermediate.matching.layers import Pair, fixed_pairs, paths
from gkd_methods_intermediate.matching.projection import projections
from gkd_methods_intermediate.matching.shapes import check_shapes
from gkd_methods_intermediate.matching.term import MatchTerm

ASSIGNMENTS: Mapping[str, Callable[[Tensor], Flow]] = {"emd": transport, "monotone": monotone}


class Match(Method):
    """A distillation described as data: knowledge type x layer matching x distance.

    L = sum_k w_k sum_(s,t) D_k(P_k(f_k(student layer s)), f_k(teacher layer t)) over the terms k of
    the description and the layers (s, t) they pair: features f, projection P, distance D. Each term
    is averaged over its items, as everywhere. `match.terms` lists the terms; each names a knowledge
    type of the paper or gives site, relation and distance itself.
    """

    name = "match"
    paper = "Lu, Zhang, Chu, Chen, Zhou, Wu, Chen, Yang, 2022, arXiv:2206.14366"
    # Declared for the worst case of all descriptions: logits need a shared vocabulary, and `emd`
    # and `monotone` pair layers by their costs on the whole micro-batch.
    batch_coupled = True

    class Config(Method.Config):
        """Options of `match`."""

        terms: tuple[MatchTerm, ...] = Field(
            (MatchTerm(knowledge="hidden-mse"),),
            min_length=1,
            description="What to compare: one table `[[match.terms]]` per term.",
        )

        @field_validator("terms")
        @classmethod
        def _name(cls, terms: tuple[MatchTerm, ...]) -> tuple[MatchTerm, ...]:
            """Number terms that would otherwise share a name."""
            named: dict[str, MatchTerm] = {}
            for term in terms:
                name, number = term.name, 2
                while name in named and "name" not in term.model_fields_set:
                    name, number = f"{term.name}-{number}", number + 1
                if name in named:
                    raise ValueError(f"two terms are named '{name}'; each needs its own name")
                named[name] = term.model_copy(update={"name": name})
            return tuple(named.values())

    config: Config

    def check(self, models: Models) -> None:
        """Reject models whose shapes do not fit a term."""
        for number, term in enumerate(self.config.terms):
            try:
                check_shapes(term, models)
            except MethodError as error:
                raise MethodError(f"match.terms.{number} ({term.name}): {error}") from error

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read every layer that a term may compare."""
        return dict.fromkeys(path for term in self.config.terms for path in paths(term, models))

    def build_modules(self, models: Models) -> Mapping[str, nn.Module]:
        """Build the projections of all terms."""
        return dict(named for term in self.config.terms for named in projections(term, models))

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the layers of every term."""
        terms = {}
        for term in self.config.terms:
            temperature = term.temperature.at(step)
            comparison = TermComparison(term, student, teacher, batch, self.modules, temperature)
            terms[term.name] = term.weight.at(step) * _total(comparison)
        return terms


def _total(comparison: TermComparison) -> Term:
    """Sum the distances over all paired layers."""
    term = comparison.term
    depths = comparison.student.model.layers, comparison.teacher.model.layers
    parts = [comparison.of(pair) for pair in fixed_pairs(term, *depths)]
    if term.is_assigned:
        flow = ASSIGNMENTS[str(term.layers)](_costs(comparison, *depths))
        parts += [weight * comparison.of(Pair.of(*pair)) for pair, weight in sorted(flow.items())]
    return Term.sum(parts)


@torch.no_grad()
def _costs(comparison: TermComparison, student_layers: int, teacher_layers: int) -> Tensor:
    """Return the cost of every pair of blocks on this micro-batch, over all ranks, `[L_s, L_t]`."""
    students, teachers = range(1, student_layers + 1), range(1, teacher_layers + 1)
    costs = [comparison.of(Pair.of(s, t)) for s in students for t in teachers]
    sums = torch.stack([cost.values.sum() for cost in costs])
    summed = torch.cat([sums, sums.new_tensor([costs[0].over.count])])
    summed = sum_samples(summed.unsqueeze(0), comparison.batch)
    return summed[:-1].view(student_layers, teacher_layers) / summed[-1].clamp(min=1)
