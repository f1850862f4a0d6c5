"""`Objective`: the sum that an expression such as `2*pkd+0.5*soft` stands for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gkd_core.combiner import TeacherCombiner
from gkd_core.data.batch import Batch, ItemKind
from gkd_core.errors import MethodError
from gkd_core.hooks.features import Features, View
from gkd_core.hooks.paths import Capture, Reads, resolve_paths
from gkd_core.losses.term import Term
from gkd_core.method import Method, Step
from gkd_core.models.info import Models
from gkd_core.training.schedules import Schedule


@dataclass(frozen=True)
class Member:
    """One method of an expression.

    Attributes:
        name: The method's name.
        weight: Its factor in the sum.
        methods: One object per teacher, or a single one if the method takes none.
        models: What each of these objects is told of the models.
        generator: Source of its random draws.
    """

    name: str
    weight: Schedule
    methods: tuple[Method, ...]
    models: tuple[Models, ...]
    generator: torch.Generator

    @property
    def takes_teacher(self) -> bool:
        """Whether the method reads a teacher."""
        return self.methods[0].teachers == "one"

    def reads(self, step: Step) -> list[Reads]:
        """Return what each method object reads in this step, drawing from `step.generator`."""
        return [
            resolve_paths(method.reads(models, step), models, self.name)
            for method, models in zip(self.methods, self.models, strict=True)
        ]


@dataclass(frozen=True)
class StepReads:
    """What the methods read in one step. They are asked once a step, as they may draw it at random.

    Attributes:
        members: What each object of a method reads, by method name.
        student: All that is captured of the student.
        teachers: All that is captured of each teacher that is read.
    """

    members: Mapping[str, Sequence[Reads]]
    student: frozenset[Capture]
    teachers: Sequence[frozenset[Capture]]


class Objective:
    """The methods of a stage and their weighted sum.

    Terms are named `method.term`, or `method` where a method has a single term of its own name.
    They are summed in alphabetical order, so that `a+b` equals `b+a` to the last bit.
    """

    def __init__(self, members: Iterable[Member], combiner: TeacherCombiner | None) -> None:
        self.members = sorted(members, key=lambda member: member.name)
        self.combiner = combiner
        self.modules = nn.ModuleDict()

    def build_modules(self, seed: int) -> None:
        """Make the auxiliary modules of all methods, each seeded by its method's name."""
        for member in self.members:
            pairs = zip(member.methods, member.models, strict=True)
            for number, (method, models) in enumerate(pairs):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(name_seed(seed, f"{member.name} {number}"))
                    modules = nn.ModuleDict(dict(method.build_modules(models)))
                method.modules = modules
                if modules:
                    self.modules[f"{member.name} {number}"] = modules

    def reads(self, step: Step) -> StepReads:
        """Ask every method what it reads in this step."""
        members = {
            member.name: member.reads(replace(step, generator=member.generator))
            for member in self.members
        }
        student = frozenset[Capture]().union(*(r.student for m in members.values() for r in m))
        by_teacher = zip(*(members[m.name] for m in self.members if m.takes_teacher), strict=True)
        teachers = [frozenset[Capture]().union(*(r.teacher for r in one)) for one in by_teacher]
        return StepReads(members, student, teachers)

    def terms(
        self,
        student: Features,
        teachers: Sequence[Features],
        batch: Batch,
        step: Step,
        reads: StepReads,
    ) -> dict[str, Term]:
        """Return the unweighted terms of every method on one micro-batch.

        Args:
            student: What was captured of the student.
            teachers: What was captured of each teacher.
            batch: The micro-batch.
            step: Where training stands.
            reads: What `reads` returned for this step.
        """
        terms: dict[str, Term] = {}
        for member in self.members:
            known = teachers if member.takes_teacher else [Features()]
            views = [
                (
                    View(student, read.student, models.student, member.name),
                    View(features, read.teacher, models.teacher or models.student, member.name),
                )
                for read, models, features in zip(
                    reads.members[member.name], member.models, known, strict=True
                )
            ]
            found = self._ask(member, views, batch, replace(step, generator=member.generator))
            alone = list(found) == [member.name]
            for name, term in found.items():
                terms[name if alone else f"{member.name}.{name}"] = term
        return terms

    def _ask(
        self, member: Member, views: Sequence[tuple[View, View]], batch: Batch, step: Step
    ) -> Mapping[str, Term]:
        answers = []
        for method, (learned, known) in zip(member.methods, views, strict=True):
            terms = method.loss(learned, known, batch, step)
            answers.append({name: _as_term(member, name, t, batch) for name, t in terms.items()})
        if len(answers) == 1:
            return answers[0]
        assert self.combiner is not None, "several teachers always have a combiner"
        return self.combiner.combine(answers, batch, step)

    def total(
        self, terms: Mapping[str, Term], counts: Mapping[ItemKind, int], step: Step
    ) -> Tensor:
        """Return the weighted sum of the terms, averaged over the items of the whole step."""
        parts = [
            member.weight.at(step.index, step.total) * terms[name].mean(counts)
            for member in self.members
            for name in sorted(terms)
            if name.partition(".")[0] == member.name
        ]
        return torch.stack(parts).sum()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every method, as JSON can hold it."""
        return {
            member.name: [method.state_dict() for method in member.methods]
            for member in self.members
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        for member in self.members:
            for method, kept in zip(member.methods, state[member.name], strict=True):
                method.load_state_dict(kept)

    def generators(self) -> dict[str, torch.Generator]:
        """Return the methods' sources of random draws, by method name."""
        return {member.name: member.generator for member in self.members}


def name_seed(seed: int, name: str) -> int:
    """Return a seed that depends on `seed` and `name` only, not on the order things are made in."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:6], "big")


def _as_term(member: Member, name: str, value: Term | Tensor, batch: Batch) -> Term:
    """Accept a loss per sample or a mean over the samples in place of a `Term`."""
    if isinstance(value, Term):
        return value
    if value.dim() == 0:
        value = value.expand(len(batch))
    if value.shape != (len(batch),):
        raise MethodError(
            f"{member.name} returned the loss '{name}' with shape {tuple(value.shape)}; return a "
            "Term, a tensor with one loss per sample, or a scalar"
        )
    # Under autocast a method's own arithmetic may give bf16.
    return Term(value.to(torch.promote_types(value.dtype, torch.float32)), batch.samples)
