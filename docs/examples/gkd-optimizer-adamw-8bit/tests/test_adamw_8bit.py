import importlib.util

import pytest
import torch
from gkd_optimizer_adamw_8bit import AdamW8bit

from gkd_core.api import ConfigError, ParallelConfig, TrainedWeight, TrainingConfig
from gkd_core.testing import check_optimizer

OPTIONS = AdamW8bit.Config()
SETTINGS = {"weight_decay": 0.1, "lr": 0.01}


def _factory() -> AdamW8bit:
    return AdamW8bit(OPTIONS, TrainingConfig(**SETTINGS))


def test_state_takes_a_quarter_of_that_of_adamw() -> None:
    matrix = TrainedWeight((512, 512), 1)
    assert _factory().state_bytes(matrix) == 2 * 512 * 512 + 2 * 4 * 1024 + 4
    assert _factory().state_bytes(TrainedWeight((512,), 1)) == 2 * 4 * 512 + 4


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="'adamw-8bit' needs bitsandbytes"):
        _factory().check(ParallelConfig())


def test_zero_3_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"parallel.zero = 3"):
        _factory().check(ParallelConfig(zero=3))


def test_it_has_the_properties_every_optimizer_must_have() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    check_optimizer(AdamW8bit, {"min_size": 64}, SETTINGS)
    check_optimizer(AdamW8bit)


def test_it_stays_near_adamw() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 64, generator=generator)
    mine, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    group = {"params": [mine], "weight_decay": 0.1, "rule": ""}
    eight_bit = AdamW8bit(AdamW8bit.Config(min_size=64), TrainingConfig(**SETTINGS)).build([group])
    stock = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.999), weight_decay=0.1)
    for _ in range(20):
        gradient = torch.randn(64, 64, generator=generator) + 1
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        eight_bit.step()
        stock.step()
    moved = (theirs - start).abs().mean()
    assert (mine - theirs).abs().mean() < 0.05 * moved
