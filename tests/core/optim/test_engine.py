"""The optimizer: learning rate, clipping, weight decay, its state."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from gkd_core.config.schema import TrainingConfig
from gkd_core.distributed.device import pick_device
from gkd_core.errors import ConfigError
from gkd_core.optim.engine import LocalEngine
from gkd_core.optim.loss_scale import LossScale
from gkd_core.optim.schedules import lr_factor
from gkd_core.parallel.weights import named_weights

CPU = torch.device("cpu")


def _engine(model, total=10, **settings):
    return LocalEngine([model], TrainingConfig(**settings), total, CPU)


def _rates(total=10, **settings):
    config = TrainingConfig(**settings)
    return [lr_factor(config, index, total) for index in range(total)]


def test_linear_schedule_warms_up_and_falls_towards_zero():
    expected = [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert _rates(warmup=0.2, lr_schedule="linear") == pytest.approx(expected)


def test_cosine_schedule_is_half_way_in_the_middle():
    rates = _rates(total=9, warmup=0.0, lr_schedule="cosine")
    expected = [(1 + math.cos(math.pi * index / 9)) / 2 for index in range(9)]
    assert rates == pytest.approx(expected)
    assert rates[0] == 1
    assert rates[-1] > 0


def test_constant_schedule_stays_at_its_peak():
    assert _rates(warmup=0.3, lr_schedule="constant") == pytest.approx([1 / 3, 2 / 3] + [1] * 8)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_extreme_warmup_gives_a_rate_for_every_step(warmup):
    rates = _rates(warmup=warmup)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates == sorted(rates, reverse=warmup == 0)


def test_logged_rate_is_the_one_the_optimizer_uses():
    model = nn.Linear(2, 2)
    engine = _engine(model, lr=0.4, warmup=0.5)
    for index in range(10):
        engine.backward(model(torch.ones(1, 2)).sum())
        engine.step(index)
        assert {group["lr"] for group in engine.optimizer.param_groups} == {engine.lr(index)}


def test_first_update_is_the_rate_against_the_sign_of_the_gradient():
    model = nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    engine = _engine(model, lr=0.1, warmup=0, weight_decay=0, clip=0)
    gradient = torch.tensor([[2.0, -3.0, 0.5]])
    engine.backward((model.weight * gradient).sum())
    engine.step(0)
    torch.testing.assert_close(model.weight.detach(), before - 0.1 * gradient.sign())


def test_weight_decay_leaves_biases_and_norms_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Embedding(5, 4))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    engine = _engine(model, lr=0.1, warmup=0, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    engine.step(0)
    found = {name: float(p.detach().flatten()[0]) for name, p in model.named_parameters()}
    assert found == pytest.approx(
        {"0.weight": 0.95, "0.bias": 1, "1.weight": 1, "1.bias": 1, "2.weight": 0.95}
    )


@pytest.mark.parametrize(("clip", "kept"), [(1.0, 1.0), (0.0, 5.0), (10.0, 5.0)])
def test_clipping_bounds_the_gradient_and_reports_it_as_it_was(clip, kept):
    model = nn.Linear(2, 1, bias=False)
    engine = _engine(model, clip=clip)
    seen = []
    engine.optimizer.step = lambda: seen.append(model.weight.grad.clone())
    engine.backward((model.weight * torch.tensor([[3.0, 4.0]])).sum())
    norm = engine.step(0)
    assert float(norm) == pytest.approx(5)
    assert float(seen[0].norm()) == pytest.approx(kept, rel=1e-5)
    assert model.weight.grad is None


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_fp16_skips_what_overflows_and_updates_as_fp32_does(clip):
    models = {name: nn.Linear(2, 1, bias=False) for name in ("fp16", "fp32")}
    models["fp16"].load_state_dict(models["fp32"].state_dict())
    engines = {n: _engine(m, precision=n, clip=clip, lr=0.1) for n, m in models.items()}
    before = models["fp16"].weight.detach().clone()
    engines["fp16"].backward((models["fp16"].weight * math.inf).sum())
    assert not math.isfinite(engines["fp16"].step(0))
    assert torch.equal(models["fp16"].weight, before)
    assert not engines["fp16"].optimizer.state
    assert engines["fp16"].scale.read() == {"loss_scale": 2**15, "skipped_steps": 1}
    norms = {}
    for name, model in models.items():
        engines[name].backward((model.weight * torch.tensor([[3.0, 4.0]])).sum())
        norms[name] = float(engines[name].step(1))
    assert norms == {"fp16": 5, "fp32": 5}
    assert torch.equal(models["fp16"].weight, models["fp32"].weight)
    assert engines["fp32"].scale is None


def test_loss_scale_falls_at_once_rises_after_long_and_ends_in_an_error():
    scale = LossScale()
    for _ in range(16):
        scale.update(True)
        assert scale.overflowed
    assert scale.value == 1
    scale.update(True)
    assert (scale.value, scale.skipped, scale.overflowed) == (1, 16, False)
    for _ in range(1999):
        scale.update(False)
    again = LossScale()
    again.load_state_dict(scale.state_dict())
    again.update(False)
    assert (scale.value, again.value, again.skipped) == (1, 2, 16)


def test_step_without_gradients_reports_a_norm_on_the_device_of_the_weights():
    """Methods such as `theseus` have steps in which nothing is trained."""
    device = torch.device("meta")
    engine = LocalEngine([nn.Linear(2, 2, device=device)], TrainingConfig(), 10, device)
    engine.halts = False  # nothing on this device has a value
    assert engine.step(0).device == device


def test_clipping_counts_auxiliary_modules_too():
    student, modules = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    engine = LocalEngine([student, modules], TrainingConfig(), 10, CPU)
    for module in (student, modules):
        module.weight.grad = torch.tensor([[3.0, 4.0]])
    assert float(engine.step(0)) == pytest.approx(50**0.5)


def test_optimizer_goes_on_from_its_saved_state():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    model[2].bias.requires_grad_(False)
    engine = _engine(model, lr=0.1)

    def train(model, engine, steps):
        for index in steps:
            # The last layer takes part from the third step on, so that its state comes later.
            out = model(torch.full((2, 3), float(index))) if index > 1 else model[:2](torch.eye(3))
            engine.backward(out.square().sum())
            engine.step(index)

    for done in (1, 4):
        train(model, engine, range(done - 1, done))
        other = copy.deepcopy(model)
        resumed = _engine(other, lr=0.1)
        resumed.load_state_tensors({n: t.clone() for n, t in engine.state_tensors().items()})
        kept = copy.deepcopy(model), engine
        train(other, resumed, range(done, done + 3))
        again = copy.deepcopy(kept[0])
        reference = _engine(again, lr=0.1)
        reference.optimizer.load_state_dict(copy.deepcopy(engine.optimizer.state_dict()))
        train(again, reference, range(done, done + 3))
        for mine, theirs in zip(other.parameters(), again.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_tied_weights_and_buffers_are_named_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    model.register_buffer("scratch", torch.zeros(1), persistent=False)
    names = [name for name, _ in named_weights(model)]
    assert len(names) == len(set(names))
    assert "1.weight" not in names
    assert "scratch" not in names
    assert {"0.weight", "2.running_mean", "2.num_batches_tracked"} <= set(names)


def test_unavailable_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(ConfigError, match=r"parallel.device is 'cuda', but PyTorch finds no CUDA"):
        pick_device("cuda")


def _spoilt_step(engine, model, loss, factor, index=0):
    engine.backward((model.weight * factor).sum())
    engine.note_loss(torch.tensor(loss))
    return engine.step(index)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("loss", "factor"), [(math.nan, 1.0), (1.0, math.inf)])
def test_weights_never_change_after_a_step_that_is_not_finite(precision, loss, factor):
    model = nn.Linear(2, 1, bias=False)
    engine = _engine(model, precision=precision, lr=0.1, warmup=0)
    if engine.scale is not None:
        engine.scale.value = 1.0  # where an overflow is an error
    _spoilt_step(engine, model, 1.0, 1.0)
    before = model.weight.detach().clone()
    state = {name: tensor.clone() for name, tensor in engine.state_tensors().items()}
    assert not engine.halted
    _spoilt_step(engine, model, loss, factor, index=1)
    _spoilt_step(engine, model, 1.0, 1.0, index=2)
    assert engine.halted
    assert torch.equal(model.weight, before)
    assert all(torch.equal(tensor, state[n]) for n, tensor in engine.state_tensors().items())


@pytest.mark.parametrize(("loss", "skipped"), [(math.nan, 0), (math.inf, 0), (1.0, 1)])
def test_loss_that_is_not_finite_is_no_overflow_of_the_gradient(loss, skipped):
    model = nn.Linear(2, 1, bias=False)
    engine = _engine(model, precision="fp16")
    _spoilt_step(engine, model, loss, math.nan)
    assert engine.scale.read() == {"loss_scale": 2**16 / 2**skipped, "skipped_steps": skipped}
    assert engine.scale.overflowed == bool(skipped)
    assert engine.halted != bool(skipped)
