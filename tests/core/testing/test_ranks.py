"""Functions of a test file are called on several processes."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist

from gkd_core.api import MethodError
from gkd_core.testing import on_ranks


@dataclass(frozen=True)
class Number:
    value: float


def total(number, scale):
    mine = torch.tensor([number.value * scale * (dist.get_rank() + 1)])
    dist.all_reduce(mine)
    return dist.get_rank(), Number(mine.item())


def test_ranks_share_a_group_and_results_come_in_their_order():
    found = on_ranks(2, total, Number(0.5), 4)
    assert found == [(0, Number(6.0)), (1, Number(6.0))]


def refuse():
    if dist.get_rank() == 1:
        raise MethodError("1 is refused")
    dist.barrier()


def test_what_a_rank_raises_is_raised_with_its_traceback():
    with pytest.raises(MethodError, match="1 is refused") as raised:
        on_ranks(2, refuse)
    assert "on rank 1" in raised.value.__notes__[0]
    assert "in refuse" in raised.value.__notes__[0]


def die():
    if dist.get_rank() == 1:
        os._exit(7)
    dist.barrier()


def test_a_rank_that_dies_is_reported():
    with pytest.raises(RuntimeError, match=r"died with exit status 7|closed by peer|reset by peer"):
        on_ranks(2, die)


def variable():
    return os.environ.get("GKD_CACHE")


def test_ranks_see_the_environment_of_the_moment(monkeypatch):
    for value in ("one", "two"):
        monkeypatch.setenv("GKD_CACHE", value)
        assert on_ranks(1, variable) == [value]
