"""`Objective`: the weighted sum that an expression such as `2*pkd+0.5*soft` denotes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gkd_core import digest
from gkd_core.contract.batch import Batch, ItemKind
from gkd_core.contract.method_base import MethodBase
from gkd_core.contract.step import Step
from gkd_core.errors import MethodError, PluginError
from gkd_core.hooks.paths import MAIN
from gkd_core.losses.term import Term
from gkd_core.objective.captured import Captured
from gkd_core.objective.ensemble import EnsembleStep, TeacherEnsemble, ensembles
from gkd_core.objective.step_plan import ActiveMethod, StepPlan, StepRequest, plan_step
from gkd_core.plugins.answers import mapping_of


class Objective:
    """The methods of a stage and their weighted sum.

    Terms are named `method.term`, or `method` if that method has a single term with its own name;
    the same holds for combiners. They are summed in alphabetical order, so that `a+b` and `b+a` are
    bit-identical.
    """

    def __init__(self, members: Iterable[ActiveMethod]) -> None:
        self.members = sorted(members, key=lambda member: member.name)
        self.ensembles = ensembles(self.members)
        self.modules = nn.ModuleDict()

    @property
    def _owners(self) -> list[ActiveMethod | TeacherEnsemble]:
        return sorted([*self.members, *self.ensembles], key=lambda owner: owner.name)

    def objects(self) -> Iterator[tuple[str, MethodBase]]:
        """Yield each combiner and then each object of a method, with a name of its own."""
        for ensemble in self.ensembles:
            yield ensemble.name, ensemble.combiner
        for member in self.members:
            for number, method in enumerate(member.methods):
                yield f"{member.name} {number}", method

    def stateful(self) -> Iterator[tuple[str, MethodBase]]:
        """Yield those of `objects` that keep a state from step to step."""
        for name, method in self.objects():
            if type(method).state_dict is not MethodBase.state_dict:
                yield name, method

    def build_modules(self, seed: int) -> None:
        """Build the auxiliary modules of all methods and combiners, seeded by their names."""
        for member in self.members:
            pairs = zip(member.methods, member.models, strict=True)
            for number, (method, models) in enumerate(pairs):
                build = partial(method.build_modules, models)
                self._adopt(f"{member.name} {number}", method, build, seed)
        for ensemble in self.ensembles:
            combiner = ensemble.combiner
            self._adopt(ensemble.name, combiner, combiner.build_modules, seed)

    def _adopt(
        self,
        name: str,
        owner: MethodBase,
        build: Callable[[], Mapping[str, nn.Module]],
        seed: int,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(name_seed(seed, name))
            modules = _module_dict(build(), owner)
        owner.modules = modules
        if modules:
            self.modules[name] = modules

    @property
    def tells_parts_apart(self) -> bool:
        """Whether parts of the student may be frozen or have different learning rates."""
        kinds = (type(owner.methods[0]) for owner in self._owners)
        return any(k.gradual_unfreezing or k.lr_factors is not MethodBase.lr_factors for k in kinds)

    def plan(self, step: Step) -> StepPlan:
        """Begin a step of every method; return its plan, made from their requests."""
        return plan_step(self.members, step)

    def declare_items(self, batch: Batch) -> None:
        """Add to a micro-batch the items that methods and combiners declare.

        Args:
            batch: The micro-batch, on the CPU.
        """
        for owner in self._owners:
            method = owner.methods[0]
            wanted = "a mapping of names to bool tensors"
            masks = mapping_of(method, "items", method.items(batch), Tensor, wanted)
            batch.declare(owner.name, masks)

    def terms(
        self, captured: Captured, batch: Batch, step: Step, plan: StepPlan
    ) -> dict[str, Term]:
        """Return the unweighted terms of every method on one micro-batch.

        Args:
            captured: The captured features.
            batch: The micro-batch.
            step: The position in training.
            plan: The plan of this step.
        """
        ensemble_steps = {
            c.name: EnsembleStep(
                c,
                plan.requests[c.name],
                captured,
                batch.seen_by(c.name),
                replace(step, generator=c.generator),
            )
            for c in self.ensembles
        }
        found: dict[str, dict[str, Term]] = {}
        for member in self.members:
            ensemble_step = ensemble_steps[member.ensemble.name] if member.ensemble else None
            where = replace(step, generator=member.generator)
            with captured.saving(self.modules.parameters()):
                requests = plan.requests[member.name]
                found[member.name] = _combined(
                    member, ensemble_step, requests, captured, batch.seen_by(member.name), where
                )
        for name, ensemble_step in ensemble_steps.items():
            inside = [m.name for m in self.members if m.ensemble and m.ensemble.name == name]
            given = {key: term for part in inside for key, term in _named(part, found[part])}
            own = ensemble_step.own_terms(given)
            found[name] = _as_terms(ensemble_step.combiner, own, batch)
        named = (pair for name in sorted(found) for pair in _named(name, found[name]))
        # A batch that does not count keeps its graph: all ranks take part in the backward pass.
        return {name: term if batch.counted else 0 * term for name, term in named}

    def total(
        self, terms: Mapping[str, Term], counts: Mapping[ItemKind, int], step: Step
    ) -> Tensor:
        """Return the weighted sum of the terms, averaged over the items of the whole step."""
        parts = [
            owner.factor(step) * terms[name].mean(counts)
            for owner in self._owners
            for name in sorted(terms)
            if name.partition(".")[0] == owner.name
        ]
        if not parts:
            names = " and ".join(owner.name for owner in self._owners)
            raise MethodError(
                f"there is no loss to train on in step {step.index + 1} of stage '{step.stage}': "
                f"{names} returned none. Return one in every step, such as a loss of 0"
            )
        return torch.stack(parts).sum()

    def finalize_student(self, student: PreTrainedModel, directory: Path) -> PreTrainedModel:
        """Return the trained student after each method has finalized it, one after another."""
        for member in self.members:
            for method in member.methods:
                student = method.finalize_student(student, directory)
        return student

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every method and combiner: JSON values and tensors."""
        states = {m.name: [_state(method) for method in m.methods] for m in self.members}
        return states | {c.name: [_state(c.combiner)] for c in self.ensembles}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for member in self.members:
            for method, kept in zip(member.methods, state[member.name], strict=True):
                method.load_state_dict(kept)
        for ensemble in self.ensembles:
            (kept,) = state[ensemble.name]
            ensemble.combiner.load_state_dict(kept)

    def generators(self) -> dict[str, torch.Generator]:
        """Return the generators of random draws, by name of the method or combiner."""
        return {owner.name: owner.generator for owner in self._owners}


def _state(method: MethodBase) -> Mapping[str, Any]:
    """Return the state of a method, after checking that it is a mapping."""
    wanted = "a mapping of names to values, {} without a state"
    return mapping_of(method, "state_dict", method.state_dict(), object, wanted)


def _combined(
    member: ActiveMethod,
    ensemble_step: EnsembleStep | None,
    requests: Sequence[StepRequest],
    captured: Captured,
    batch: Batch,
    step: Step,
) -> dict[str, Term]:
    """Return the terms of a method, computed per teacher and combined."""
    answers = []
    for number, (method, one) in enumerate(zip(member.methods, requests, strict=True)):
        learned = captured.learned(one)
        seen = learned if ensemble_step is None else ensemble_step.student(number, learned)
        losses = method.loss(seen, captured.known(one), batch, step)
        answers.append(_as_terms(method, losses, batch))
    if ensemble_step is None:
        return answers[0]
    _refuse_other_terms(member.name, answers)
    return ensemble_step.combine(answers, requests[0].captures("teacher", MAIN))


def _refuse_other_terms(owner: str, answers: Sequence[Mapping[str, Term]]) -> None:
    """Reject a method that returns other terms for one teacher than for another."""
    first, *others = ([*answer] for answer in answers)
    for other in others:
        if set(other) != set(first):
            raise MethodError(
                f"{owner} returned the losses {_quoted(first)} for one teacher and "
                f"{_quoted(other)} for another, which cannot be combined. Return the same for each"
            )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _named(owner: str, terms: Mapping[str, Term]) -> Iterable[tuple[str, Term]]:
    """Return the terms of a method with their names in the sum."""
    alone = list(terms) == [owner]
    return [(name if alone else f"{owner}.{name}", term) for name, term in terms.items()]


def _module_dict(modules: object, owner: MethodBase) -> nn.ModuleDict:
    """Return the modules that `build_modules` returned, by name.

    Raises:
        PluginError: It is something else.
    """
    where = f"{type(owner).__module__}.{type(owner).__qualname__}.build_modules"
    if not isinstance(modules, Mapping):
        raise PluginError(
            f"{where} returned a {type(modules).__name__}; return a mapping of names to "
            "torch.nn.Module"
        )
    for name, module in modules.items():
        if not isinstance(module, nn.Module):
            raise PluginError(
                f"{where} returned a {type(module).__name__} as {name!r}; each value is a "
                "torch.nn.Module"
            )
        if not isinstance(name, str) or not name or "." in name:
            raise PluginError(
                f"{where} returned a module named {name!r}; a name is a string without dots"
            )
    return nn.ModuleDict(dict(modules))


def name_seed(seed: int, name: str) -> int:
    """Return a seed that depends only on `seed` and `name`, not on the order of creation."""
    return int(digest.of_bytes([f"{seed}:{name}".encode()])[:12], 16)


def _as_terms(method: MethodBase, losses: Any, batch: Batch) -> dict[str, Term]:
    """Return the losses of a method or combiner as terms by name."""
    wanted = "a mapping of names to losses, such as {'soft': kl(...)}, each a Term or a tensor"
    found = mapping_of(method, "loss", losses, (Term, Tensor), wanted)
    return {name: _as_term(method.name, name, value, batch) for name, value in found.items()}


def _check_shape(owner: str, name: str, term: Term) -> None:
    """Reject values of another shape than their items: the sum of them would be no mean."""
    if term.values.shape != term.over.mask.shape:
        raise MethodError(
            f"{owner} returned the loss '{name}' with values of shape {tuple(term.values.shape)} "
            f"for items of shape {tuple(term.over.mask.shape)}; return one value per item. What "
            "a Term is multiplied by must not add dimensions to it"
        )


def _as_term(owner: str, name: str, value: Term | Tensor, batch: Batch) -> Term:
    """Return a loss as a `Term`; it may be given per sample or as a mean over the samples."""
    if isinstance(value, Term):
        _check_shape(owner, name, value)
        if batch.has_counted(value.over):
            return value
        raise MethodError(
            f"{owner} averages the loss '{name}' over items that were not counted over the whole "
            "optimizer step, so the mean would be wrong. Return their mask from `items` and use "
            "`batch.items(NAME)`; if they depend on the models, give the others a loss of 0 and "
            "average over `batch.tokens`"
        )
    if value.dim() == 0:
        value = value.expand(len(batch))
    if value.shape != (len(batch),):
        raise MethodError(
            f"{owner} returned the loss '{name}' with shape {tuple(value.shape)}; return a "
            "Term, a tensor with one loss per sample, or a scalar"
        )
    # Under autocast, a method's own arithmetic may produce bf16.
    return Term(value.to(torch.promote_types(value.dtype, torch.float32)), batch.samples)
