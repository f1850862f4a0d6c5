"""Relations whose heads are divided over ranks are compared as whole ones are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from gkd_core.contract.batch import Items
from gkd_core.contract.model_info import ModelInfo
from gkd_core.distributed.heads import DividedHeads
from gkd_core.hooks.features import Features, View
from gkd_core.hooks.paths import Capture
from gkd_core.losses import Relation, relation_kl, relation_mse

SAMPLES, HEADS, LENGTH = 2, 12, 5
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
OVER = Items.where("token", MASK)


def random(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def relation(keys, seed, masked="padding"):
    """Of 12 query heads; the mask tells heads apart, or only padding, or the future."""
    query = random(SAMPLES, HEADS, LENGTH, 4, seed=seed)
    key = random(SAMPLES, keys, LENGTH, 4, seed=seed + 1)
    seen = MASK[:, None, None, :]
    if masked == "heads":
        seen = seen & (random(SAMPLES, HEADS, LENGTH, LENGTH, seed=9) > -1)
    return Relation(
        query=query.requires_grad_(),
        key=key.requires_grad_(),
        mask=None if masked == "future" else seen,
        causal=masked == "future",
        scale=0.5,
        bias=random(1, HEADS, LENGTH, LENGTH, seed=seed + 2).requires_grad_(),
    )


def divide(whole, group):
    """This rank's heads of a relation, with leaves of their own."""
    rank, ranks = group.rank(), group.size()

    def own(tensor):
        if tensor is None or tensor.shape[1] == 1:
            return tensor
        heads = tensor.shape[1]
        first, last = rank * heads // ranks, max((rank + 1) * heads // ranks, 1)
        share = tensor.detach()[:, first : max(last, first + 1)].clone()
        return share.requires_grad_(tensor.requires_grad)

    divided = DividedHeads(group, HEADS, whole.key.shape[1])
    parts = {name: own(getattr(whole, name)) for name in ("query", "key", "mask", "bias")}
    return replace(whole, heads=divided, **parts)


def leaves(compared):
    return compared.query, compared.key, compared.bias


def differences(loss, student, teacher, divided, known):
    """Of the values, and of the gradients of a student that is divided, or whole."""
    expected, found = loss(student, teacher, OVER), loss(divided, known, OVER)
    theirs = torch.autograd.grad(expected.mean(), leaves(student))
    ours = torch.autograd.grad(found.mean(), leaves(divided))
    if divided.heads is not None:
        repeats = 1, divided.heads.repeats("key"), 1
        ours = [joined(*pair, divided.heads.group) for pair in zip(ours, repeats, strict=True)]
    pairs = zip((expected.values, *theirs), (found.values, *ours), strict=True)
    return max((one - other).abs().max().item() for one, other in pairs)


def joined(gradient, repeats, group):
    """The gradient of all heads, summed where ranks that follow each other have the same ones."""
    shares = [torch.empty_like(gradient) for _ in range(group.size())]
    dist.all_gather(shares, gradient, group=group)
    return torch.cat(shares, 1).unflatten(1, (-1, repeats)).sum(2)


def groups():
    """This rank's group of each size."""
    pairs, _ = dist.new_subgroups(2)
    return {2: pairs, 4: dist.group.WORLD}


def all_degrees(masked):
    by_size, found = groups(), {}
    for loss in (relation_kl, relation_mse):
        for keys, other_keys in ((12, 12), (2, 4), (4, 3)):
            student, teacher = relation(keys, 0, masked), relation(other_keys, 5, masked)
            learned = {1: student} | {n: divide(student, group) for n, group in by_size.items()}
            # No group of these sizes has a rank for 3 key heads.
            known = {1: teacher}
            if other_keys != 3:
                known |= {n: divide(teacher, group) for n, group in by_size.items()}
            for size, divided in learned.items():
                for degree, target in known.items():
                    case = loss.__name__, keys, other_keys, size, degree
                    found[case] = differences(loss, student, teacher, divided, target)
    return found


@pytest.mark.parametrize(
    "masked",
    [
        "padding",
        *(pytest.param(mask, marks=pytest.mark.exhaustive) for mask in ("heads", "future")),
    ],
)
def test_values_and_gradients_are_those_of_whole_relations(on_ranks, masked):
    for found in on_ranks(4, all_degrees, masked):
        assert len(found) == 2 * (9 + 9 + 3)
        assert max(found.values()) < 1e-12, found


def whole_scores():
    whole = relation(2, 0)
    divided = divide(whole, dist.group.WORLD)
    pairs = (divided.scores(), whole.scores()), (divided.probs(), whole.probs())
    return divided.shape == whole.shape, [(x - y).abs().max().item() for x, y in pairs]


def test_scores_of_divided_heads_are_whole(on_ranks):
    for same_shape, apart in on_ranks(4, whole_scores):
        assert same_shape
        assert max(apart) < 1e-12


def view(seed, group, heads=4, repeated=False):
    """Values of 4 heads of width 6, divided or whole."""
    capture = Capture("value", 1)
    whole = random(SAMPLES, heads, LENGTH, 6, seed=seed)
    keys = 1 if repeated else heads
    divided = None if group is None else DividedHeads(group, heads, keys)
    features = Features(divided)
    whole = whole[:, :1] if repeated else whole
    value = whole if group is None else divided.shard("value", whole)
    features.keep(capture, value.requires_grad_())
    info = ModelInfo("student", "bert", 1, 24, heads, keys, 6, 64, 100, 2, 64)
    return View(features, [capture], info, "test"), value


def related(heads, repeated):
    """Compare relations of values; return how far apart, and what was gathered."""
    gathered = []
    gather = dist.all_gather

    def counting(shares, tensor, **named):
        gathered.append(tensor.numel())
        return gather(shares, tensor, **named)

    losses, values = [], []
    for group in (None, dist.group.WORLD):
        learned, value = view(0, group, repeated=repeated)
        known, _ = view(1, group, repeated=repeated)
        dist.all_gather = counting
        pair = (side.value.relation(-1, MASK, heads) for side in (learned, known))
        term = relation_kl(*pair, OVER)
        dist.all_gather = gather
        losses.append(term.values)
        values.append(torch.autograd.grad(term.mean(), value)[0])
    whole, own = values
    if repeated:
        dist.all_reduce(own)
    else:
        whole = whole.chunk(dist.get_world_size(), 1)[dist.get_rank()]
    apart = (losses[0] - losses[1]).abs().max().item(), (whole - own).abs().max().item()
    return max(apart), len(gathered)


@pytest.mark.parametrize(
    ("heads", "repeated", "gathers"),
    [(None, False, 0), (8, False, 0), (4, False, 0), (3, False, 2), (1, False, 2), (2, True, 2)],
)
def test_relation_heads_that_can_be_shared_out_are_not_gathered(on_ranks, heads, repeated, gathers):
    for apart, gathered in on_ranks(2, related, heads, repeated):
        assert apart < 1e-12
        assert gathered == gathers
