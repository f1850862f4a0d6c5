"""`check_optimizer`: checks of the properties that every optimizer must have."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gkd_core.config.schema import TrainingConfig
from gkd_core.contract.optimizer import OptimizerFactory, StateTensor
from gkd_core.distributed.groups import arrange
from gkd_core.distributed.layout import Layout
from gkd_core.distributed.shards import sharding_of
from gkd_core.models.parts import find_parts
from gkd_core.models.sites import find_sites
from gkd_core.optim.engine import LocalEngine
from gkd_core.optim.groups import ChosenOptimizer
from gkd_core.parallel.weights import whole_weights
from gkd_core.testing.ranks import on_ranks
from gkd_core.testing.tiny import tiny_model

STEPS = 4
FROZEN = {"embedding": 0.0, 1: 0.0}
ROUNDING = 1e-6
"""Difference of weights that an elementwise optimizer may make of another layout."""

Arrays: TypeAlias = dict[str, "np.ndarray[Any, Any]"]


def check_optimizer(
    optimizer: type[OptimizerFactory],
    options: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Check an optimizer on a tiny decoder, in this process and at tensor parallelism 2.

    The state is what `state` says, to the byte. A step moves every weight against its gradient. A
    learning rate of 0 changes neither weights nor state. An optimizer that restores its saved state
    continues as if never interrupted. Two processes that share the model compute what one computes,
    and save the same state. If it is `elementwise`, the shape of a weight does not matter.

    Args:
        optimizer: The class; it stands at the top of a module.
        options: Options that differ from their defaults.
        training: Settings of the `training` table that differ from their defaults.

    Raises:
        AssertionError: A property does not hold; the message says which.
    """
    trial = _OptimizerTrial(optimizer, dict(options or {}), dict(training or {}))
    _check_state(trial)
    _check_descent(trial)
    _check_frozen(trial)
    _check_resume(trial)
    if optimizer.elementwise:
        _check_elements(trial)
    _check_ranks(trial)


@dataclass(frozen=True)
class _OptimizerTrial:
    """An optimizer on a tiny model, with gradients drawn at random.

    Attributes:
        optimizer: Its class.
        options: Its options.
        training: Settings of the `training` table.
    """

    optimizer: type[OptimizerFactory]
    options: Mapping[str, Any]
    training: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the optimizer, for messages."""
        return self.optimizer.name

    def factory(self, **training: Any) -> OptimizerFactory:
        """Return the factory, without warm-up, decay of the rate and clipping."""
        still = {"lr": 0.01, "warmup": 0.0, "lr_schedule": "constant", "clip": 0.0}
        settings = TrainingConfig.model_validate({**still, **self.training, **training})
        return self.optimizer(self.optimizer.Config(**self.options), settings)

    def engine(self, model: PreTrainedModel, **training: Any) -> LocalEngine:
        """Return an engine that trains a model."""
        factory, parts = self.factory(**training), find_parts(find_sites(model))
        chosen = ChosenOptimizer(factory, parts)
        return LocalEngine([model], factory.training, STEPS, torch.device("cpu"), parts, chosen)


def _model() -> PreTrainedModel:
    return tiny_model("causal-lm", layers=2, seed=1).float()


def _gradient(name: str, index: int, shape: Iterable[int]) -> Tensor:
    seed = sum(map(ord, name)) + 1000 * index
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def _train(engine: LocalEngine, model: nn.Module, indices: Iterable[int]) -> None:
    """Do some steps; the gradient of a weight depends on the step and on its name alone."""
    sharding = sharding_of(model)
    splits = {} if sharding is None else sharding.splits
    for index in indices:
        for name, weight in model.named_parameters():
            split = splits.get(name)
            whole = _gradient(name, index, weight.shape if split is None else split.shape)
            weight.grad = whole if sharding is None else sharding.shard(name, whole)
        engine.step(index)


def _check_state(trial: _OptimizerTrial) -> None:
    model = _model()
    engine = trial.engine(model)
    _train(engine, model, range(1))
    known = engine.chosen.describe(engine.parameters, engine.division)
    for weight in engine.parameters:
        expected = dict(engine.chosen.factory.state(known[weight]))
        state = engine.optimizer.state[weight]
        wrong = [name for name, value in state.items() if not isinstance(value, Tensor)]
        assert not wrong, f"{trial.name}: state {wrong} is no tensor, so that it cannot be saved"
        found = {name: _described(tensor) for name, tensor in state.items()}
        assert found == expected, (
            f"{trial.name}: for {known[weight]} it keeps {found}, but `state` says {expected}"
        )


def _described(tensor: Tensor) -> StateTensor:
    return StateTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _check_descent(trial: _OptimizerTrial) -> None:
    model = _model()
    before = copy.deepcopy(model)
    _train(trial.engine(model, weight_decay=0.0), model, range(1))
    for (name, weight), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert weight.isfinite().all(), f"{trial.name}: {name} is not finite after a step"
        moved = ((weight - old) * _gradient(name, 0, weight.shape)).sum()
        assert moved < 0, f"{trial.name}: a step does not move {name} against its gradient"


def _check_frozen(trial: _OptimizerTrial) -> None:
    model = _model()
    engine = trial.engine(model)
    _train(engine, model, range(1))
    parts = engine.chosen.parts
    frozen = [weight for part in FROZEN for weight in parts[part]]  # type: ignore[index]
    before = [weight.detach().clone() for weight in frozen]
    states = [copy.deepcopy(dict(engine.optimizer.state[weight])) for weight in frozen]
    engine.set_lr_factors(FROZEN)  # type: ignore[arg-type]
    _train(engine, model, range(1, 2))
    for weight, old, state in zip(frozen, before, states, strict=True):
        assert torch.equal(weight, old), f"{trial.name}: a learning rate of 0 changes a weight"
        for name, tensor in engine.optimizer.state[weight].items():
            same = torch.equal(tensor, state[name])
            assert same, f"{trial.name}: a learning rate of 0 changes the state {name}"


def _check_resume(trial: _OptimizerTrial) -> None:
    model = _model()
    engine = trial.engine(model)
    _train(engine, model, range(2))
    other = copy.deepcopy(model)
    resumed = trial.engine(other)
    resumed.load_state_tensors({n: t.clone() for n, t in engine.state_tensors().items()})
    _train(engine, model, range(2, STEPS))
    _train(resumed, other, range(2, STEPS))
    for (name, weight), again in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, again), (
            f"{trial.name}: after a resume {name} differs; all state must be in "
            "`Optimizer.state`, by weight"
        )


def _check_elements(trial: _OptimizerTrial) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(4, 6, generator=generator) for _ in range(STEPS)]
    found = []
    for shape in ((4, 6), (24,)):
        weight = nn.Parameter(torch.ones(shape))
        group = {"params": [weight], "weight_decay": 0.1, "part": None, "rule": ""}
        optimizer = trial.factory().build([group])
        for gradient in gradients:
            weight.grad = gradient.view(shape).clone()
            optimizer.step()
        found.append(weight.detach().view(-1))
    difference = (found[0] - found[1]).abs().max()
    assert difference < ROUNDING, (
        f"{trial.name}: it is declared `elementwise`, but a matrix is not updated as a vector of "
        f"its elements is (difference {difference:.2g})"
    )


def _check_ranks(trial: _OptimizerTrial) -> None:
    model = _model()
    engine = trial.engine(model)
    _train(engine, model, range(STEPS))
    alone = {**_arrays(whole_weights(model)), **_arrays(engine.state_tensors())}
    shared = on_ranks(2, _on_two_ranks, trial)[0]
    assert alone.keys() == shared.keys(), (
        f"{trial.name}: two processes save {sorted(shared)}, one saves {sorted(alone)}"
    )
    allowed = ROUNDING if trial.optimizer.elementwise else 0.0
    for name, tensor in alone.items():
        difference = np.abs(tensor.astype(float) - shared[name].astype(float)).max(initial=0.0)
        assert difference <= allowed, (
            f"{trial.name}: at tensor parallelism 2, {name} differs by {difference:.2g}"
        )


def _on_two_ranks(trial: _OptimizerTrial) -> Arrays:
    """Return the weights and the state that two ranks have together, on the first rank."""
    from gkd_core.parallel.sharding import shard_model  # megatron-core takes seconds to import

    groups = arrange(Layout(2, 2))
    assert groups is not None, "two ranks share the model"
    model = shard_model(_model(), groups.tensor)
    engine = trial.engine(model)
    _train(engine, model, range(STEPS))
    return {**_arrays(whole_weights(model)), **_arrays(engine.state_tensors())}


def _arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
