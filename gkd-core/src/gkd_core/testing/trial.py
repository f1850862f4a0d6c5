"""`TinyStage`: a method or combiner on tiny models, and the checks of its properties."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gkd_core.contract.batch import IGNORE, Batch, ItemKind
from gkd_core.contract.method_base import MethodBase
from gkd_core.contract.model_info import ModelInfo, Models
from gkd_core.contract.step import Step
from gkd_core.errors import MethodError
from gkd_core.hooks.extraction import Extractor
from gkd_core.models.sites import find_sites
from gkd_core.objective.objective import Objective
from gkd_core.objective.passes import run_passes
from gkd_core.objective.step_plan import ActiveMethod, StepPlan
from gkd_core.plugins import registry
from gkd_core.testing.tiny import NAMES, tiny_batch, tiny_model

KINDS: Sequence[str] = ("classification", "causal-lm")
STEPS = 10


class TinyStage:
    """A method or combiner on tiny models: everything that determines its loss.

    Attributes:
        subject: Its class.
        options: Options that differ from their defaults.
        kind: The kind of task.
    """

    teacher_layers: Sequence[int] = (4,)

    def __init__(self, subject: type[MethodBase], options: Mapping[str, Any], kind: str) -> None:
        self.subject, self.options, self.kind = subject, options, kind
        self.student = _extractor(kind, layers=2, seed=1)
        self.teachers = [
            _extractor(kind, layers, seed) for seed, layers in enumerate(self.teacher_layers, 2)
        ]
        for teacher in self.teachers:
            teacher.model.requires_grad_(False)  # as in a run
        student = _info("student", self.student, kind)
        self.models = tuple(
            Models(student, _info(f"teacher{number}", teacher, kind))
            for number, teacher in enumerate(self.teachers, 1)
        )
        self.objective = self.build()
        self.name = f"{subject.name} on {kind}"

    def member(self) -> ActiveMethod:
        """Return the method under test, as in a new run.

        Raises:
            MethodError: It rejects the models.
        """
        raise NotImplementedError

    def build(self) -> Objective:
        """Return the objective as in a new run."""
        objective = Objective([self.member()])
        objective.build_modules(seed=0)
        objective.modules.double()
        return objective

    def loss(
        self,
        batch: Batch,
        counts: Mapping[ItemKind, int],
        index: int = 0,
        plan: StepPlan | None = None,
    ) -> Tensor:
        """Return the total of one micro-batch at a step, requesting a plan if none is given."""
        step = _step(index)
        plan = plan or self.objective.plan(step)
        captured = run_passes(plan, self.student, self.teachers, batch, step)
        terms = self.objective.terms(captured, batch, step, plan)
        assert terms, f"{self.name}: `loss` returned no term"
        return self.objective.total(terms, counts, step)

    def gradient(self, batches: Sequence[Batch], counts: Mapping[ItemKind, int]) -> Tensor:
        """Return the student's gradient over micro-batches, for a new objective."""
        self.objective = self.build()
        self.student.model.zero_grad()
        plan = self.objective.plan(_step(0))
        for batch in batches:
            self.loss(batch, counts, plan=plan).backward()  # type: ignore[no-untyped-call]
        return torch.cat(
            [p.grad.flatten() for p in self.student.model.parameters() if p.grad is not None]
        )


def check_kinds(trial: Callable[[str], TinyStage], kinds: Sequence[str]) -> None:
    """Check the properties on several kinds of task, skipping those whose models are rejected.

    Raises:
        AssertionError: A property does not hold; the message says which.
        MethodError: The models of every kind are rejected.
    """
    conflicts = []
    for kind in kinds:
        try:
            _check(trial(kind))
        except MethodError as error:
            conflicts.append(error)
    if len(conflicts) == len(kinds):
        raise conflicts[0]


def generator() -> torch.Generator:
    """Return the random generator of a trial."""
    return torch.Generator().manual_seed(0)


def _extractor(kind: str, layers: int, seed: int) -> Extractor:
    model = tiny_model(kind, layers=layers, seed=seed)
    return Extractor(model, find_sites(model))


def _info(name: str, extractor: Extractor, kind: str) -> ModelInfo:
    config, found = extractor.model.config, registry().kind(kind)
    width = found.width(NAMES, config)
    return ModelInfo.read(name, config, width, found.predicted)


def _step(index: int) -> Step:
    return Step(index, STEPS, 0, "check", torch.default_generator)


def _check(trial: TinyStage) -> None:
    batch = tiny_batch(trial.kind)
    counts = batch.counts()
    loss = trial.loss(batch, counts)
    assert loss.isfinite(), f"{trial.name}: the loss is {loss.item()}"
    _check_gradients(trial, batch)
    padded = _fresh_loss(trial, _pad(batch, 3))
    _same(padded, loss, f"{trial.name}: padding changes the loss")
    order = torch.tensor([2, 0, 3, 1])
    _same(_fresh_loss(trial, _take(batch, order)), loss, f"{trial.name}: the order of rows matters")
    if not trial.subject.batch_coupled:
        _check_accumulation(trial, batch)
    _check_resume(trial, batch)


def _check_gradients(trial: TinyStage, batch: Batch) -> None:
    parameters = [p for teacher in trial.teachers for p in teacher.model.parameters()]
    before = [p.clone() for p in parameters]
    gradient = trial.gradient([batch], batch.counts())
    assert gradient.isfinite().all(), f"{trial.name}: the student's gradient is not finite"
    assert gradient.abs().sum() > 0, f"{trial.name}: no gradient reaches the student"
    for old, parameter in zip(before, parameters, strict=True):
        assert torch.equal(old, parameter), f"{trial.name}: the teacher changes"


def _check_accumulation(trial: TinyStage, batch: Batch) -> None:
    counts = batch.counts()
    whole = trial.gradient([batch], counts)
    parts = [_take(batch, torch.tensor(rows)) for rows in ([0], [1, 2, 3])]
    message = (
        f"{trial.name}: micro-batches change the gradient; declare `batch_coupled` if they must"
    )
    _same(trial.gradient(parts, counts), whole, message)


def _check_resume(trial: TinyStage, batch: Batch) -> None:
    trial.objective = trial.build()
    counts = batch.counts()
    trial.loss(batch, counts, index=0)
    state = json.loads(json.dumps(trial.objective.state_dict()))
    modules = trial.objective.modules.state_dict()
    states = {name: g.get_state() for name, g in trial.objective.generators().items()}
    uninterrupted = trial.loss(batch, counts, index=1)
    trial.objective = trial.build()
    trial.objective.load_state_dict(state)
    trial.objective.modules.load_state_dict(modules)
    for name, source in trial.objective.generators().items():
        source.set_state(states[name])
    resumed = trial.loss(batch, counts, index=1)
    message = f"{trial.name}: after a resume the loss differs; return what it needs in `state_dict`"
    _same(resumed, uninterrupted, message)


def _fresh_loss(trial: TinyStage, batch: Batch) -> Tensor:
    trial.objective = trial.build()
    return trial.loss(batch, batch.counts())


def _same(found: Tensor, expected: Tensor, message: str) -> None:
    difference = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    assert difference < 1e-7, f"{message} (relative difference {difference.item():.2g})"


def _pad(batch: Batch, columns: int) -> Batch:
    inputs = {name: functional.pad(value, (0, columns)) for name, value in batch.inputs.items()}
    labels = batch.labels
    if labels is not None and labels.shape == batch.inputs["input_ids"].shape:
        labels = functional.pad(labels, (0, columns), value=IGNORE)
    words = None if batch.words is None else functional.pad(batch.words, (0, columns), value=-1)
    return replace(batch, inputs=inputs, labels=labels, words=words)


def _take(batch: Batch, rows: Tensor) -> Batch:
    def some(values: Tensor) -> Tensor:
        # A row may have several sequences.
        return values.reshape(len(batch), -1, *values.shape[1:])[rows].flatten(0, 1)

    inputs = {name: some(value) for name, value in batch.inputs.items()}
    labels = None if batch.labels is None else batch.labels[rows]
    words = None if batch.words is None else some(batch.words)
    return replace(batch, inputs=inputs, labels=labels, rows=batch.rows[rows], words=words)
