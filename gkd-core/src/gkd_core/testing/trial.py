"""`TinyStage`: a method or combiner on tiny models, and the checks of its properties."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from gkd_core.contract.batch import Batch, ItemKind
from gkd_core.contract.method_base import MethodBase
from gkd_core.contract.model_info import DataInfo, ModelInfo, Models
from gkd_core.contract.step import Step
from gkd_core.distributed.groups import setup
from gkd_core.distributed.layout import Layout
from gkd_core.distributed.shards import sharding_of
from gkd_core.errors import MethodError
from gkd_core.hooks.extraction import Extractor
from gkd_core.models.sites import find_sites
from gkd_core.objective.ensemble import TeacherEnsemble
from gkd_core.objective.objective import Objective
from gkd_core.objective.passes import run_passes
from gkd_core.objective.step_plan import ActiveMethod, StepPlan
from gkd_core.plugins import registry
from gkd_core.testing.batches import pad, take, with_prompts, without_labels
from gkd_core.testing.queries import check_queries
from gkd_core.testing.side_effects import foreign_weights, keeps_globals, keeps_inputs
from gkd_core.testing.tiny import (
    DECODER,
    NAMES,
    VOCABULARY,
    accepts,
    tiny_batch,
    tiny_model,
    tiny_view,
)
from gkd_core.training.method_state import put_tensors, take_tensors

KINDS: Sequence[str] = ("classification", "causal-lm")
STEPS = 10
TOKENS = tuple(f"token {number}" for number in range(VOCABULARY))
CLASS_NAMES = tuple("abcdefgh"[: len(NAMES)])


class TinyStage:
    """A method or combiner on tiny models: everything that determines its loss.

    Attributes:
        subject: Its class.
        options: Options that differ from their defaults.
        kind: The kind of task.
        group: The ranks that share each model, or None if this process has them whole.
        family: Another architecture than that of the kind.
        first_step: Index of the first step in which the subject has a loss.
    """

    first_step: int = 0
    teacher_layers: Sequence[int] = (4,)

    def __init__(
        self,
        subject: type[MethodBase],
        options: Mapping[str, Any],
        kind: str,
        group: ProcessGroup | None = None,
        family: str = "",
    ) -> None:
        self.subject, self.options, self.kind, self.group = subject, options, kind, group
        self.student = _extractor(kind, 2, 1, group, family)
        self.teachers = [
            _extractor(kind, layers, seed, group, family)
            for seed, layers in enumerate(self.teacher_layers, 2)
        ]
        for teacher in self.teachers:
            teacher.model.requires_grad_(False)  # as in a run
        student = _info("student", self.student, kind)
        if subject.aligns and student.is_lm:
            student = replace(student, tokens=TOKENS)
        classes = () if registry().kind(kind).is_lm else CLASS_NAMES
        data = DataInfo(len(tiny_batch(kind)), classes, ("teacher1", "teacher2"))
        self.models = tuple(
            Models(student, self._teacher_info(number), kind, data)
            for number in range(1, len(self.teachers) + 1)
        )
        self.objective = self.build()
        self.name = f"{subject.name} on {kind}"

    def _teacher_info(self, number: int) -> ModelInfo:
        """Return the shape of a teacher; half of its tokens are the student's if these differ."""
        info = _info(f"teacher{number}", self.teachers[number - 1], self.kind)
        if self.subject.aligns and info.is_lm:
            return replace(info, tokens=TOKENS[::2] + tuple(f" {token}" for token in TOKENS[1::2]))
        return info

    def decoder(self) -> TinyStage | None:
        """Return the same with decoders, which can read rows padded on the left, or None.

        Raises:
            MethodError: The subject rejects them.
        """
        if self.student.sites.causal:
            return self
        kind = registry().kind(self.kind)
        if kind.predicted != "sample" or not accepts(kind, DECODER):
            return None
        decoder = type(self)(self.subject, self.options, self.kind, family=DECODER)
        decoder.first_step = self.first_step
        return decoder

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
        index: int | None = None,
        plan: StepPlan | None = None,
    ) -> Tensor:
        """Return the total of one micro-batch at a step, requesting a plan if none is given."""
        with keeps_globals(self.name):
            return self._loss(batch, counts, self.first_step if index is None else index, plan)

    def _loss(
        self,
        batch: Batch,
        counts: Mapping[ItemKind, int],
        index: int,
        plan: StepPlan | None,
    ) -> Tensor:
        step = self.step(index)
        self.objective.declare_items(batch)
        plan = plan or self.objective.plan(step)
        captured = run_passes(plan, self.student, self.teachers, batch, step)
        guard = keeps_inputs(self.name, captured, batch) if self.group is None else nullcontext()
        with guard:
            terms = self.objective.terms(captured, batch, step, plan)
        assert terms, f"{self.name}: `loss` returned no term"
        for name, term in terms.items():
            assert not term.values[~term.over.mask].any(), (
                f"{self.name}: the loss '{name}' has values at items that do not count, such as "
                "padding or prompts; set them to 0"
            )
        return self.objective.total(terms, counts, step)

    def batch(self) -> Batch:
        """Return a tiny batch; where the subject aligns tokens, teachers read other ones."""
        batch = tiny_batch(self.kind)
        if not self.subject.aligns:
            return batch
        names = [models.teacher.name for models in self.models if models.teacher is not None]
        return replace(batch, views=dict.fromkeys(names, tiny_view(self.kind, batch)))

    def step(self, index: int) -> Step:
        """Return a step of a stage that ends some steps after the first with a loss."""
        return Step(index, self.first_step + STEPS, 0, "check", torch.default_generator)

    def counts(self, batch: Batch) -> dict[ItemKind, int]:
        """Return the number of items of each kind, also of those that the subject declares."""
        self.objective.declare_items(batch)
        return batch.counts()

    def gradient(self, batches: Sequence[Batch], counts: Mapping[ItemKind, int]) -> Tensor:
        """Return the student's gradient over micro-batches, for a new objective."""
        self.objective = self.build()
        parameters = list(self.student.model.parameters())
        self.student.model.zero_grad()
        plan = self.objective.plan(self.step(self.first_step))
        for batch in batches:
            self.learn(self.loss(batch, counts, plan=plan))
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        return torch.cat([gradient.flatten() for gradient in found])

    def learn(self, loss: Tensor) -> None:
        """Add the gradient of a loss to the weights that are trained, unless it is constant.

        Raises:
            AssertionError: It would train other weights too.
        """
        modules = self.objective.modules
        known = [*self.student.model.parameters(), *modules.parameters()]
        foreign = foreign_weights(loss, known)
        assert not foreign, (
            f"{self.name}: the loss has a gradient for a tensor of shape {tuple(foreign[0].shape)} "
            "that is not trained: return weights from `build_modules`, and detach what is no weight"
        )
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]

    def gradients(self) -> dict[str, Tensor]:
        """Return the loss of a new objective, and its gradients by name of the weight."""
        self.objective = self.build()
        self.student.model.zero_grad()
        batch = self.batch()
        loss = self.loss(batch, self.counts(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        named = [
            *self.student.model.named_parameters(),
            *((f"modules {name}", p) for name, p in self.objective.modules.named_parameters()),
        ]
        found = {name: p.grad for name, p in named if p.grad is not None}
        return {"the loss": loss.detach(), **found}


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


def check_at_edges(trial: Callable[[str], TinyStage], kinds: Sequence[str]) -> None:
    """Check the properties that hold even where the loss is constant, such as with a share of 0.

    Kinds whose models are rejected are skipped.

    Raises:
        AssertionError: A property does not hold; the message says which.
    """
    for kind in kinds:
        with suppress(MethodError):
            at_edge = trial(kind)
            at_edge.name += f" with {dict(at_edge.options)}"
            with _naming(at_edge):
                _check_invariance(at_edge)


def generator() -> torch.Generator:
    """Return the random generator of a trial."""
    return torch.Generator().manual_seed(0)


def check_shared(
    trial: Callable[[str, ProcessGroup | None], TinyStage], kinds: Sequence[str]
) -> None:
    """Check on this rank that models shared by all ranks give the gradients of whole ones.

    Kinds whose models are rejected are skipped.

    Args:
        trial: Makes the trial, with models that a group shares or whole ones.
        kinds: Kinds of task.

    Raises:
        AssertionError: They do not; the message says for which weight.
    """
    world = dist.get_world_size()
    group = setup(Layout(world=world, tensor=world)).tensor
    for kind in kinds:
        with suppress(MethodError):
            _check_shared(trial(kind, None), trial(kind, group), world)


def _check_shared(whole: TinyStage, shared: TinyStage, ranks: int) -> None:
    expected, found = whole.gradients(), shared.gradients()
    sharding = sharding_of(shared.student.model)
    assert sharding is not None, "the group divides the student"
    # Some gradients, such as that of a bias of the keys, are zero but for rounding.
    largest = max(tensor.abs().max() for tensor in expected.values())
    for name, tensor in expected.items():
        apart = (found[name] - sharding.shard(name, tensor)).abs().max() / largest
        assert apart < 1e-7, (
            f"{whole.name}: on {ranks} ranks that share the models, {name} differs "
            f"(relative difference {apart.item():.2g})"
        )


def _extractor(
    kind: str, layers: int, seed: int, group: ProcessGroup | None, family: str
) -> Extractor:
    model = tiny_model(kind, layers, seed, family)
    if group is not None:
        from gkd_core.parallel.sharding import shard_model

        shard_model(model, group)
    return Extractor(model, find_sites(model))


def _info(name: str, extractor: Extractor, kind: str) -> ModelInfo:
    config, found = extractor.model.config, registry().kind(kind)
    width = found.width(NAMES, config)
    return ModelInfo.read(name, config, width, found.predicted, found.is_lm)


def _check(trial: TinyStage) -> None:
    with _naming(trial):
        _check_invariance(trial)
        batch = trial.batch()
        gradient = trial.gradient([batch], trial.counts(batch))
        assert gradient.abs().sum() > 0, f"{trial.name}: no gradient reaches the student"
        _check_training(trial, batch)
        _check_resume(trial, batch, after=4, steps=2)
        _check_few_rows(trial, batch)
        _check_prompts(trial, batch)
        _check_unlabeled(trial, batch)


@contextmanager
def _naming(trial: TinyStage) -> Iterator[None]:
    """Add to an error of the subject on what it was tried."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while checking {trial.name}")
        raise


def _check_invariance(trial: TinyStage) -> None:
    batch = trial.batch()
    loss = _fresh_loss(trial, batch)
    _finite(loss, trial.name)
    _check_gradients(trial, batch)
    padded = _fresh_loss(trial, pad(batch, 3))
    _same(padded, loss, f"{trial.name}: padding changes the loss")
    with suppress(MethodError):
        _check_left_padding(trial.decoder())
    order = torch.tensor([2, 0, 3, 1])
    _same(_fresh_loss(trial, take(batch, order)), loss, f"{trial.name}: the order of rows matters")
    if not trial.subject.batch_coupled:
        _check_accumulation(trial, batch)
    check_step_queries(trial, batch)
    _check_resume(trial, batch, after=1, steps=1)


def _check_training(trial: TinyStage, batch: Batch) -> None:
    """Check that steps can follow one another, and that the auxiliary modules learn in them."""
    trial.objective = trial.build()
    counts = trial.counts(batch)
    for later in (0, 1, STEPS // 2, STEPS - 1):
        index = trial.first_step + later
        loss = trial.loss(batch, counts, index)
        _finite(loss, f"{trial.name} in step {index + 1} of {trial.step(index).total}")
        try:
            trial.learn(loss)
        except RuntimeError as error:
            raise AssertionError(
                f"{trial.name}: backward fails in step {index + 1} ({error}); detach what is kept "
                "from one step to the next"
            ) from error
    weights = [p for p in trial.objective.modules.parameters() if p.requires_grad]
    assert not weights or any(p.grad is not None for p in weights), (
        f"{trial.name}: no gradient reaches any weight of `build_modules`"
    )


def _check_few_rows(trial: TinyStage, batch: Batch) -> None:
    """Check the smallest micro-batch that a run may have, such as the last of an epoch."""
    count = getattr(trial.subject, "min_samples", 1)
    few = take(batch, torch.arange(count))
    name = f"{trial.name} with {count} row{'s' if count > 1 else ''}"
    _finite(_fresh_loss(trial, few), f"{name} (`min_samples`)")
    gradient = trial.gradient([few], trial.counts(few))
    assert gradient.isfinite().all(), f"{name}: the student's gradient is not finite"


def _check_prompts(trial: TinyStage, batch: Batch) -> None:
    """Check a micro-batch of prompts and texts, with a row in which nothing is to be predicted."""
    if not registry().kind(trial.kind).generates:
        return
    prompted = with_prompts(batch, 2)
    _finite(_fresh_loss(trial, prompted), f"{trial.name} with a row that has no target")
    if not trial.subject.batch_coupled:
        _check_accumulation(trial, prompted)


def _check_unlabeled(trial: TinyStage, batch: Batch) -> None:
    if trial.subject.needs_labels or registry().kind(trial.kind).is_lm:
        return
    try:
        loss = _fresh_loss(trial, without_labels(batch))
    except (AttributeError, TypeError) as error:
        raise AssertionError(
            f"{trial.name}: it fails without labels ({error}); declare `needs_labels`"
        ) from error
    _finite(loss, f"{trial.name} without labels")


def _check_left_padding(trial: TinyStage | None) -> None:
    if trial is None:
        return
    batch = trial.batch()
    loss, padded = (_fresh_loss(trial, one) for one in (batch, pad(batch, 3, left=True)))
    _same(padded, loss, f"{trial.name}: padding on the left of a decoder's rows changes the loss")


def _check_gradients(trial: TinyStage, batch: Batch) -> None:
    parameters = [p for teacher in trial.teachers for p in teacher.model.parameters()]
    before = [p.clone() for p in parameters]
    gradient = trial.gradient([batch], trial.counts(batch))
    assert gradient.isfinite().all(), f"{trial.name}: the student's gradient is not finite"
    for old, parameter in zip(before, parameters, strict=True):
        assert torch.equal(old, parameter), f"{trial.name}: the teacher changes"


def _check_accumulation(trial: TinyStage, batch: Batch) -> None:
    counts = trial.counts(batch)
    whole = trial.gradient([batch], counts)
    parts = [take(batch, torch.tensor(rows)) for rows in ([0], [1, 2, 3])]
    message = (
        f"{trial.name}: micro-batches change the gradient; declare `batch_coupled` if they must"
    )
    _same(trial.gradient(parts, counts), whole, message)


def check_step_queries(trial: TinyStage, batch: Batch) -> None:
    """Check that what a method says about a step changes nothing, in some steps of a new run.

    Raises:
        AssertionError: It does; the message says which query.
    """
    trial.objective = trial.build()
    for index in (trial.first_step + later for later in (0, 1, STEPS - 1)):
        step = trial.step(index)
        plan = trial.objective.plan(step)
        owners: list[ActiveMethod | TeacherEnsemble] = [*trial.objective.members]
        for owner in (*owners, *trial.objective.ensembles):
            own = replace(step, generator=owner.generator)
            check_queries(owner.methods, owner.models, own, f"{trial.name} in step {index}")
        trial.loss(batch, trial.counts(batch), index, plan)


def _check_resume(trial: TinyStage, batch: Batch, after: int, steps: int) -> None:
    """Check that the steps of a resumed run are those of one that was never interrupted.

    Args:
        trial: The trial.
        batch: The batch of every step.
        after: Number of steps after which the run is interrupted.
        steps: Number of steps to compare.
    """
    trial.objective = trial.build()
    counts = trial.counts(batch)
    resumed_at = trial.first_step + after
    for index in range(trial.first_step, resumed_at):
        trial.loss(batch, counts, index)
    # Copies, as a checkpoint holds: the next step may change the originals in place.
    tensors: dict[str, Tensor] = {}
    state = json.loads(json.dumps(take_tensors(trial.objective.state_dict(), tensors)))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    modules = deepcopy(trial.objective.modules.state_dict())
    states = {name: g.get_state() for name, g in trial.objective.generators().items()}
    following = range(resumed_at, resumed_at + steps)
    uninterrupted = [trial.loss(batch, counts, index) for index in following]
    trial.objective = trial.build()
    trial.objective.load_state_dict(put_tensors(state, tensors))
    trial.objective.modules.load_state_dict(modules)
    for name, source in trial.objective.generators().items():
        source.set_state(states[name])
    resumed = [trial.loss(batch, counts, index) for index in following]
    message = f"{trial.name}: after a resume the loss differs; return what it needs in `state_dict`"
    _same(torch.stack(resumed), torch.stack(uninterrupted), message)


def _fresh_loss(trial: TinyStage, batch: Batch) -> Tensor:
    trial.objective = trial.build()
    return trial.loss(batch, trial.counts(batch))


def _finite(loss: Tensor, name: str) -> None:
    assert loss.isfinite(), f"{name}: the loss is {loss.item()}"


def _same(found: Tensor, expected: Tensor, message: str) -> None:
    difference = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    assert difference < 1e-7, f"{message} (relative difference {difference.item():.2g})"
