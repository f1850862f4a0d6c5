"""Built-in optimizers: what one step does, which weights they update, what they keep."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.grids import first_of
from torch import nn

from gkd_core.config.schema import ParallelConfig, RunConfig, TrainingConfig
from gkd_core.contract.optimizer import OptimizerFactory, StateTensor, TrainedWeight
from gkd_core.errors import ConfigError, PluginError
from gkd_core.models.parts import find_parts
from gkd_core.models.sites import find_sites
from gkd_core.optim.engine import LocalEngine
from gkd_core.optim.groups import ChosenOptimizer
from gkd_core.plugins import registry
from gkd_core.testing import tiny_model

CPU = torch.device("cpu")
NAMES = ["adafactor", "adamw", "muon"]
STILL = {"warmup": 0.0, "lr_schedule": "constant", "clip": 0.0}


def _factory(name, options=None, **training):
    cls = registry().optimizer(name)
    return cls(cls.Config(**(options or {})), TrainingConfig(**(STILL | training)))


def _engine(model, factory, parts=None, told_apart=False):
    every = find_parts(find_sites(model)) if parts is None else parts
    chosen = ChosenOptimizer(factory, every)
    own = every if told_apart else {}
    return LocalEngine([model], factory.training, 10, CPU, own, chosen)


def _bert(seed=1):
    return tiny_model("classification", layers=2, seed=seed).float()


def _gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator) for p in model.parameters()]


def _step(engine, model, index):
    for weight, gradient in zip(model.parameters(), _gradients(model, index), strict=True):
        weight.grad = gradient
    engine.step(index)


def test_adamw_is_pytorchs_to_the_last_bit():
    model = _bert()
    other = copy.deepcopy(model)
    engine = _engine(model, _factory("adamw", lr=0.01, weight_decay=0.1))
    groups = [
        {"params": [p for p in other.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in other.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), eps=1e-8, fused=True)
    for index in range(3):
        _step(engine, model, index)
        for weight, gradient in zip(other.parameters(), _gradients(other, index), strict=True):
            weight.grad = gradient
        reference.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_first_step_of_adafactor_by_hand():
    """At the first step beta2 is 0: the moments are those of the gradient.

    Its squares are 9, 1 / 1, 1: rows have means 5 and 1, columns 5 and 1, and their mean is 3.
    So the estimate of element (i, j) is row_i * column_j / 3.
    """
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 2.0], [2.0, 2.0]]))
    factory = _factory("adafactor", lr=0.1, weight_decay=0.0)
    engine = _engine(model, factory, parts={})
    model.weight.grad = torch.tensor([[3.0, 1.0], [-1.0, 1.0]])
    engine.step(0)
    estimate = torch.tensor([[25 / 3, 5 / 3], [5 / 3, 1 / 3]])
    update = torch.tensor([[3.0, 1.0], [-1.0, 1.0]]) / estimate.sqrt()
    size = update.square().mean().sqrt()
    assert size > 1  # so that it is clipped to 1
    expected = 2 - 0.1 * 2.0 * update / size  # the root mean square of the weight is 2
    torch.testing.assert_close(model.weight.detach(), expected)


def test_first_step_of_adafactor_for_a_vector_is_its_rate_against_the_sign():
    model = nn.LayerNorm(3, bias=False)
    engine = _engine(model, _factory("adafactor", lr=0.01, weight_decay=0.5), parts={})
    model.weight.grad = torch.tensor([2.0, -3.0, 0.5])
    engine.step(0)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([0.99, 1.01, 0.99]))


def _newton_schulz(value):
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    return value


@pytest.mark.parametrize(("scale", "factor"), [("adamw", 0.2 * 8**0.5), ("shape", 2**0.5)])
def test_first_step_of_muon_by_hand(scale, factor):
    """The gradient has one singular value, which its norm divides to 1; each iteration maps it.

    Momentum and its Nesterov look-ahead scale the gradient, which its norm takes out again.
    """
    model = _Block(8, 4)
    weight = model.block.weight
    before = weight.detach().clone()
    factory = _factory("muon", {"scale": scale}, lr=0.1, weight_decay=0.5)
    engine = _engine(model, factory, parts={1: [weight]})
    left, right = torch.zeros(8, 1), torch.zeros(4, 1)
    left[3], right[2] = 1.0, 1.0
    weight.grad = 5 * left @ right.T
    engine.step(0)
    expected = before * (1 - 0.1 * 0.5) - 0.1 * factor * _newton_schulz(1.0) * left @ right.T
    # PyTorch iterates in bfloat16.
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=0.02 * 0.1 * factor)


class _Block(nn.Module):
    def __init__(self, rows, columns):
        super().__init__()
        self.block = nn.Linear(columns, rows, bias=False)


def test_muon_is_pytorchs_for_matrices_of_blocks_and_adamw_for_all_else():
    model = _bert()
    other = copy.deepcopy(model)
    options = {"momentum": 0.9, "adamw_rate": 0.5}
    engine = _engine(model, _factory("muon", options, lr=0.01, weight_decay=0.1, beta2=0.99))
    blocks = {p for p in other.bert.encoder.parameters() if p.dim() == 2}
    rest = [p for p in other.parameters() if p not in blocks]
    muon = torch.optim.Muon(
        [p for p in other.parameters() if p in blocks],
        lr=0.01,
        weight_decay=0.1,
        momentum=0.9,
        adjust_lr_fn="match_rms_adamw",
    )
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.005, betas=(0.9, 0.99), fused=True)
    for index in range(3):
        _step(engine, model, index)
        for weight, gradient in zip(other.parameters(), _gradients(other, index), strict=True):
            weight.grad = gradient
        muon.step()
        adamw.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert len(blocks) == 12


@pytest.mark.parametrize("name", NAMES)
def test_state_is_what_the_factory_says_to_the_byte(name):
    model = _bert()
    factory = _factory(name)
    engine = _engine(model, factory)
    _step(engine, model, 0)
    known = engine.chosen.describe(engine.parameters, engine.division)
    allocated = 0
    for weight in engine.parameters:
        found = {
            n: StateTensor(tuple(t.shape), str(t.dtype).removeprefix("torch."))
            for n, t in engine.optimizer.state[weight].items()
        }
        assert found == factory.state(known[weight])
        allocated += sum(t.nbytes for t in engine.optimizer.state[weight].values())
    assert allocated == sum(map(factory.state_bytes, known.values()))


def test_state_of_adafactor_is_far_smaller_than_the_weights():
    adafactor, adamw = _factory("adafactor"), _factory("adamw")
    matrix = TrainedWeight((1000, 500), 1)
    assert adafactor.state_bytes(matrix) == 4 * 1500 + 4
    assert adamw.state_bytes(matrix) == 2 * 4 * 500_000 + 4
    assert _factory("muon").state_bytes(matrix) == 4 * 500_000
    assert _factory("muon").state_bytes(TrainedWeight((1000, 500))) == 2 * 4 * 500_000 + 4


@pytest.mark.parametrize("name", NAMES)
def test_frozen_part_stays_bit_equal(name):
    model = _bert()
    before = copy.deepcopy(model)
    engine = _engine(model, _factory(name, lr=0.1, weight_decay=0.1), told_apart=True)
    _step(engine, model, 0)
    first = copy.deepcopy(model)
    kept = {n: t.clone() for n, t in engine.state_tensors().items()}
    engine.set_lr_factors({1: 0.0, "embedding": 0.0})
    _step(engine, model, 1)
    frozen = {
        f"bert.encoder.layer.0.{n}" for n, _ in model.bert.encoder.layer[0].named_parameters()
    }
    frozen |= {f"bert.embeddings.{n}" for n, _ in model.bert.embeddings.named_parameters()}
    for (name, weight), was, old in zip(
        model.named_parameters(), first.parameters(), before.parameters(), strict=True
    ):
        assert torch.equal(weight, was) == (name in frozen), name
        assert not torch.equal(was, old)
    now = engine.state_tensors()
    numbers = {
        number
        for number, weight in enumerate(engine.parameters)
        if any(weight is w for n, w in model.named_parameters() if n in frozen)
    }
    for key, tensor in now.items():
        if int(key.split(".")[0]) in numbers:
            assert torch.equal(tensor, kept[key])


@pytest.mark.parametrize("name", NAMES)
def test_optimizer_goes_on_from_its_saved_state(name):
    model = _bert()
    engine = _engine(model, _factory(name, lr=0.01))
    for index in range(2):
        _step(engine, model, index)
    other = copy.deepcopy(model)
    resumed = _engine(other, _factory(name, lr=0.01))
    resumed.load_state_tensors({n: t.clone() for n, t in engine.state_tensors().items()})
    for index in range(2, 4):
        _step(engine, model, index)
        _step(resumed, other, index)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.mark.parametrize("name", ["adafactor", "muon"])
@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"zero": 3}, r"parallel.zero = 3"),
        ({"zero": 2, "offload_optimizer": "cpu"}, r"parallel.offload_optimizer = 'cpu'"),
    ],
)
def test_layout_without_whole_weights_is_refused(name, layout, said):
    with pytest.raises(ConfigError, match=rf"optim.name = '{name}' updates whole weights.*{said}"):
        _factory(name).check(ParallelConfig(**layout))
    _factory("adamw").check(ParallelConfig(**layout))
    _factory(name).check(ParallelConfig(zero=2))


def test_run_that_cannot_work_is_refused_before_anything_is_loaded(prepare_run):
    with pytest.raises(ConfigError, match=r"optim.name = 'muon' .*parallel.zero = 3"):
        prepare_run("optim.name=muon", "parallel.zero=3", "method=soft")


@pytest.mark.parametrize("name", first_of(sorted(NAMES, reverse=True)))
def test_run_trains_and_resumes_bit_for_bit(prepare_run, name, monkeypatch):
    from safetensors.torch import load_file

    from gkd_core.training import loop

    settings = (f"optim.name={name}", "method=soft", "training.checkpoint_every=2")
    whole, dies = (prepare_run(*settings, directory=d) for d in ("whole", "resumed"))
    whole.execute()
    stock = loop.train_step

    def step(stage, batches, step):
        if step.index == 3:
            raise KeyboardInterrupt
        return stock(stage, batches, step)

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(KeyboardInterrupt):
        dies.execute()
    monkeypatch.setattr(loop, "train_step", stock)
    resumed = prepare_run(*settings, directory="resumed")
    resumed.execute()
    mine, theirs = (
        load_file(run.directory / "student" / "model.safetensors") for run in (resumed, whole)
    )
    assert all(torch.equal(mine[n], w) for n, w in theirs.items())


def test_configured_optimizer_is_made_with_its_options():
    config = RunConfig.model_validate({"optim": {"name": "muon"}, "training": {"lr": 0.5}})
    found = registry().make_optimizer(config)
    assert (found.name, found.training.lr, found.config.momentum) == ("muon", 0.5, 0.95)
    with pytest.raises(ConfigError, match=r"unknown optimizer 'moun'.*muon"):
        registry().make_optimizer(config.model_copy(update={"optim": _named("moun")}))


def _named(name):
    return RunConfig().optim.model_copy(update={"name": name})


VALID = {"name": "wrong", "paper": "A test", "__doc__": "A test."}


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"name": "Bad Name"}, "lower-case words"),
        ({"paper": ""}, "`paper` must say"),
        ({"__doc__": None}, "a docstring is needed"),
        ({"Config": object}, "`Config` must be a subclass"),
    ],
)
def test_factory_that_breaks_the_contract_is_refused(members, said):
    with pytest.raises(PluginError, match=said):
        type("Wrong", (OptimizerFactory,), {**VALID, **members})
