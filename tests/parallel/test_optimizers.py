"""Optimizers of whole weights give the same bits in every layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gkd_core.config.schema import RunConfig
from gkd_core.plugins import registry

STEPS = 4
OPTIMIZERS = ["adafactor", "muon"]
FROZEN = {1: 0.0, "embedding": 0.0}


def _gradient(name, index, shape):
    """Return 64ths: a third of three times one is exact."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)) + 1000 * index)
    return torch.randint(-99, 100, shape, generator=generator) / 64


def _models(path, kind, tensor):
    """Return the student, divided over the ranks of its group, and auxiliary modules."""
    from gkd_core.distributed.groups import arrange
    from gkd_core.distributed.layout import Layout
    from gkd_core.distributed.ranks import world_size
    from gkd_core.parallel.sharding import shard_model

    groups = arrange(Layout(world_size(), tensor))
    student = registry().kind(kind).auto.from_pretrained(path).train()
    if groups is not None:
        shard_model(student, groups.tensor)
    torch.manual_seed(0)
    return student, nn.ModuleDict({"map": nn.Linear(5, 3)})


def _loss(student, modules, index):
    """Return a loss whose gradient is drawn at random; all of it comes from the first rows."""
    from gkd_core.distributed.groups import data_rank

    sharding = getattr(student, "sharding", None)
    total = torch.zeros(())
    for name, weight in [*student.named_parameters(), *modules.named_parameters()]:
        split = None if sharding is None else sharding.splits.get(name)
        if split is None:
            own = _gradient(name, index, tuple(weight.shape))
        else:
            own = split.shard(_gradient(name, index, split.shape), sharding.group.rank())
        if sharding is not None and name in sharding.summed:
            own = own / sharding.group.size()
        total = total + (weight * own).sum()
    return total * float(data_rank() == 0)


def _engine(student, modules, settings, told_apart):
    from gkd_core.models.parts import find_parts
    from gkd_core.models.sites import find_sites
    from gkd_core.optim.engine import build_engine
    from gkd_core.optim.groups import ChosenOptimizer

    config = RunConfig.model_validate(settings)
    every = find_parts(find_sites(student))
    chosen = ChosenOptimizer(registry().make_optimizer(config), every)
    parts = every if told_apart else {}
    return build_engine(student, modules, config, STEPS, torch.device("cpu"), parts, chosen)


def steps(path, kind, name, layout, indices, start=None, frozen_at=None):
    """Return weights and state after some steps, on the first rank, as NumPy arrays."""
    from gkd_core.parallel.weights import load_whole, whole_weights

    tensor, zero = layout
    student, modules = _models(path, kind, tensor)
    settings = {
        "optim": {"name": name},
        "parallel": {"zero": zero, "device": "cpu"},
        "training": {"lr": 0.01, "weight_decay": 0.1, "clip": 0.0, "warmup": 0.0},
    }
    engine = _engine(student, modules, settings, frozen_at is not None)
    if start is not None:
        weights, state = ({n: torch.tensor(t) for n, t in part.items()} for part in start)
        for model in (student, modules):
            load_whole(model, weights)
        engine.load_state_tensors(state)
    for index in indices:
        engine.set_lr_factors(FROZEN if index == frozen_at else {})
        engine.backward(engine.forward(lambda step=index: _loss(student, modules, step)))
        engine.step(index)
    found = {**whole_weights(student), **whole_weights(modules)}, engine.state_tensors()
    engine.close()
    return tuple({n: t.detach().numpy().copy() for n, t in part.items()} for part in found)


def all_steps(cases):
    """Return the result of each case, in the same ranks."""
    return [steps(*case) for case in cases]


def _same(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        wrong = [n for n, tensor in theirs.items() if (mine[n] != tensor).any()]
        assert not wrong


FAMILIES = [("bert", "masked-lm"), ("gpt2", "causal-lm")]
"""A vocabulary that two ranks do not divide; transposed and fused matrices."""


@pytest.mark.parametrize(
    "ranks", [2, *(pytest.param(ranks, marks=pytest.mark.exhaustive) for ranks in (3, 4))]
)
def test_layouts_give_the_same_bits(checkpoint, on_ranks, ranks):
    layouts = {
        2: [(1, 0), (2, 0), (1, 1), (1, 2)],
        3: [(1, 1), (1, 2)],
        4: [(2, 0), (2, 1), (2, 2)],
    }[ranks]
    families = FAMILIES if ranks < 4 else FAMILIES[1:]
    cases = [
        (checkpoint(family, kind), kind, name, layout, range(3))
        for family, kind in families
        for name in OPTIMIZERS
        for layout in layouts
    ]
    found = on_ranks(ranks, all_steps, cases)[0]
    for case, result in zip(cases, found, strict=True):
        path, kind, name, _, indices = case
        _same(result, steps(path, kind, name, (1, 0), indices))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "muon" else pytest.mark.exhaustive) for n in OPTIMIZERS],
)
def test_training_goes_on_under_another_layout(checkpoint, on_ranks, name):
    path = checkpoint("gpt2", "causal-lm")
    case = (path, "causal-lm", name)
    (state,) = on_ranks(2, all_steps, [(*case, (2, 0), range(1))])[0]
    state = steps(*case, (1, 0), range(1, 2), state)
    for layout, index in (((1, 2), 2), ((2, 0), 3)):
        (state,) = on_ranks(2, all_steps, [(*case, layout, range(index, index + 1), state)])[0]
    _same(state, steps(*case, (1, 0), range(4)))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name",
    ["muon", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("adafactor", "adamw"))],
)
def test_frozen_parts_stay_bit_equal_in_every_layout(checkpoint, on_ranks, name):
    path = checkpoint("bert", "classification")
    cases = [
        (path, "classification", name, layout, range(count), None, 1)
        for layout in ((2, 0), (1, 1), (1, 2))
        for count in (1, 2)
    ]
    found = on_ranks(2, all_steps, cases)[0]
    for (before, _), (after, _) in zip(found[::2], found[1::2], strict=True):
        for key, weight in after.items():
            frozen = key.startswith(("bert.embeddings", "bert.encoder.layer.0"))
            assert (weight == before[key]).all() == frozen, key


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        ("adafactor", ["zero"]),
        pytest.param("adafactor", ["tensor"], marks=pytest.mark.exhaustive),
        pytest.param("muon", ["tensor", "zero"], marks=pytest.mark.exhaustive),
    ],
)
def test_interrupted_runs_end_bit_equal(world, on_ranks, runs, tmp_path, name, layouts):
    cases = []
    for layout in layouts:
        settings = [
            "method=remembers+pkd",
            "training.checkpoint_every=3",
            f"optim.name={name}",
            f"parallel.{layout}=2",
        ]
        whole, resumed = f"{layout}-whole", f"{layout}-resumed"
        cases += [
            (whole, "teacher", settings),
            (resumed, "teacher", settings, 5),
            (resumed, "teacher", settings),
        ]
    on_ranks(2, runs.train_all, world, tmp_path, cases)
    for layout in layouts:
        runs.assert_same(tmp_path / f"{layout}-resumed", tmp_path / f"{layout}-whole")
