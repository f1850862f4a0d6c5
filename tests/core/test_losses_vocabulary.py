"""Losses of a vocabulary that is split over ranks; here each rank is a thread."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest
import torch

from gkd_core.data.batch import Items
from gkd_core.losses import (
    LinearLogits,
    chunked,
    cross_entropy,
    js,
    kl,
    reverse_kl,
    skew_kl,
    soft_cross_entropy,
    total_variation,
)

SIZES = [4, 4]
OVER = Items.where("token", torch.tensor([[True, True, False], [True, False, True]]))
WEIGHTS = torch.rand(2, 3, dtype=torch.float64)
DIVERGENCES = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "js": partial(js, beta=0.3),
    "skew_kl": partial(skew_kl, alpha=0.2),
    "total_variation": total_variation,
    "soft_cross_entropy": soft_cross_entropy,
}


class Exchange:
    """Sums or maxima over threads that call it in lock step."""

    def __init__(self):
        self.barrier = Barrier(len(SIZES), timeout=60)
        self.slots = [None] * len(SIZES)

    def reduce(self, rank, tensor, maximum=False):
        self.slots[rank] = tensor
        self.barrier.wait()
        stacked = torch.stack(self.slots)
        self.barrier.wait()
        return stacked.amax(0) if maximum else stacked.sum(0)


class Shard:
    """The columns of one thread."""

    def __init__(self, exchange, rank):
        self.reduce = partial(exchange.reduce, rank)
        self.first = sum(SIZES[:rank])

    def log_softmax(self, logits):
        most = self.reduce(logits.amax(-1, keepdim=True), maximum=True)
        total = self.reduce((logits - most).exp().sum(-1, keepdim=True))
        return (logits - most - total.log()).clamp_(min=torch.finfo(logits.dtype).min)

    def sum(self, terms):
        return self.reduce(terms.sum(-1))

    def locate(self, labels, width):
        column = labels - self.first
        here = (column >= 0) & (column < width)
        return column.where(here, 0), here


def on_shards(work):
    """Call `work(rank, vocabulary)` in one thread per shard and return the results."""
    exchange = Exchange()
    with ThreadPoolExecutor(len(SIZES)) as pool:
        ranks = range(len(SIZES))
        return list(pool.map(lambda rank: work(rank, Shard(exchange, rank)), ranks))


def run(loss, parts, weights, **vocabulary):
    """Return values and gradients with respect to the tensors that logits are made of."""
    parts = [part.detach().clone().requires_grad_() for part in parts]
    student = parts[0] if len(parts) == 1 else LinearLogits(*parts)
    term = loss(student, **vocabulary)
    total = term.mean() if weights is None else (term.values * weights).sum()
    return term.values, *torch.autograd.grad(total, parts)


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 8)
    monkeypatch.setattr(chunked, "FUSED_ROWS", 1)


def exactly(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def shards(tensor, dim):
    return torch.split(tensor, SIZES, dim)


LOGITS, TEACHER = torch.randn(2, 2, 3, sum(SIZES), dtype=torch.float64)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_of_shards_are_those_of_the_whole(name):
    def work(rank, vocabulary):
        loss = partial(
            DIVERGENCES[name],
            teacher=shards(TEACHER, -1)[rank],
            over=OVER,
            temperature=2.0,
            vocabulary=vocabulary,
        )
        return run(loss, [shards(LOGITS, -1)[rank]], None)

    loss = partial(DIVERGENCES[name], teacher=TEACHER, over=OVER, temperature=2.0)
    values, gradient = run(loss, [LOGITS], None)
    results = on_shards(work)
    for part, _ in results:
        exactly(part, values)
    exactly(torch.cat([part for _, part in results], -1), gradient)


def test_a_shard_of_padding_counts_for_nothing():
    teacher = TEACHER.clone()
    teacher[..., : SIZES[0]] = -math.inf

    def work(rank, vocabulary):
        part = shards(teacher, -1)[rank]
        return run(
            partial(reverse_kl, teacher=part, over=OVER, vocabulary=vocabulary),
            [shards(LOGITS, -1)[rank]],
            None,
        )

    rest = slice(SIZES[0], None)
    expected = run(
        partial(reverse_kl, teacher=teacher[..., rest], over=OVER), [LOGITS[..., rest]], None
    )
    (_, empty), result = on_shards(work)
    exactly(result, expected)
    assert (empty == 0).all()


HIDDEN = torch.randn(2, 3, 4, dtype=torch.float64)
WEIGHT = torch.randn(sum(SIZES), 4, dtype=torch.float64)
BIAS = torch.randn(sum(SIZES), dtype=torch.float64)
LABELS = torch.tensor([[1, 6, -100], [4, -100, 3]])


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["mean", "weighted"])
@pytest.mark.parametrize("name", ["kl", "js", "cross_entropy"])
def test_computed_logits_of_shards_have_the_gradients_of_the_whole(name, weights):
    def loss(rank=None):
        if name == "cross_entropy":
            return partial(cross_entropy, labels=LABELS, over=OVER)
        teacher = TEACHER if rank is None else shards(TEACHER, -1)[rank]
        return partial(DIVERGENCES[name], teacher=teacher, over=OVER)

    def work(rank, vocabulary):
        parts = [HIDDEN, shards(WEIGHT, 0)[rank], shards(BIAS, 0)[rank]]
        return run(loss(rank), parts, weights, vocabulary=vocabulary)

    values, hidden, weight, bias = run(loss(), [HIDDEN, WEIGHT, BIAS], weights)
    results = on_shards(work)
    for part, *_ in results:
        exactly(part, values)
    exactly(sum(part for _, part, _, _ in results), hidden)
    exactly(torch.cat([part for _, _, part, _ in results]), weight)
    exactly(torch.cat([part for _, _, _, part in results]), bias)
