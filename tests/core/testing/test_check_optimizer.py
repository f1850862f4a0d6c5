"""`check_optimizer` accepts the built-in optimizers and sees what is wrong with others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gkd_core.contract.optimizer import OptimizerFactory, StateTensor
from gkd_core.optim.optimizers.adafactor import Adafactor
from gkd_core.optim.optimizers.adamw import AdamW
from gkd_core.optim.optimizers.muon import Muon
from gkd_core.testing import check_optimizer


@pytest.mark.parametrize("optimizer", [Adafactor, AdamW, Muon])
def test_built_in_optimizers_pass(optimizer):
    check_optimizer(optimizer, training={"eps": 1e-4})


class Momentum(OptimizerFactory):
    """Stochastic gradient descent with momentum."""

    name = "momentum"
    paper = "A test"
    elementwise = True

    def build(self, groups):
        return torch.optim.SGD(groups, lr=self.training.lr, momentum=0.9)

    def state(self, weight):
        return {"momentum_buffer": StateTensor(weight.shape)}


class Forgets(Momentum):
    """Says that it keeps nothing."""

    name = "forgets"

    def state(self, weight):
        return {}


class Ascends(Momentum):
    """Goes the wrong way."""

    name = "ascends"

    def build(self, groups):
        return torch.optim.SGD(groups, lr=self.training.lr, momentum=0.9, maximize=True)


class Hides(Momentum):
    """Keeps what it needs outside of its state."""

    name = "hides"

    def build(self, groups):
        optimizer = super().build(groups)
        steps = iter(range(1, 100))
        optimizer.register_step_pre_hook(lambda *_: _scale(optimizer, 1 / next(steps)))
        return optimizer


def _scale(optimizer, factor):
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None:
                weight.grad.mul_(factor)


class Pretends(Momentum):
    """Divides a gradient by the norms of its rows, and says that it is elementwise."""

    name = "pretends"

    def build(self, groups):
        optimizer = super().build(groups)
        optimizer.register_step_pre_hook(lambda *_: _normalize(optimizer))
        return optimizer


def _normalize(optimizer):
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None:
                weight.grad = nn.functional.normalize(weight.grad, dim=-1)


def test_elementwise_optimizer_without_steps_passes():
    check_optimizer(Momentum)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (Forgets, r"forgets: for .*momentum_buffer.*but `state` says \{\}"),
        (Ascends, r"ascends: a step does not move .* against its gradient"),
        (Hides, r"hides: after a resume .* differs"),
        (Pretends, r"pretends: it is declared `elementwise`"),
    ],
)
def test_wrong_optimizers_are_seen(optimizer, said):
    with pytest.raises(AssertionError, match=said):
        check_optimizer(optimizer)
