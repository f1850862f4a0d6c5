"""Losses over a vocabulary that is divided over ranks are those of the whole one."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
import torch.distributed as dist

from gkd_core.contract.batch import Items
from gkd_core.losses import (
    LinearLogits,
    TopKLogits,
    adaptive_kl,
    chunked,
    cross_entropy,
    divergence,
    hard_labels,
    js,
    kl,
    logits_mse,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    soft_cross_entropy,
    soft_labels,
    total_variation,
)
from gkd_core.losses.logits import most_likely
from gkd_core.losses.rules import HALVINGS
from gkd_core.losses.vocabulary import DividedVocabulary

WORDS = 13
"""Over 4 ranks of 4 columns, three of the last rank fill up; over 2 of 7, one does."""

DIM = 5
DIVERGENCES = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "js": partial(js, beta=0.3),
    "skew_kl": partial(skew_kl, alpha=0.2),
    "skew_reverse_kl": partial(skew_reverse_kl, alpha=0.2),
    "adaptive_kl": adaptive_kl,
    "total_variation": total_variation,
    "soft_cross_entropy": soft_cross_entropy,
}
COMPARISONS = {name: partial(loss, temperature=2.0) for name, loss in DIVERGENCES.items()}
COMPARISONS["logits_mse"] = partial(logits_mse, factor=0.5)
MERGED = sorted(set(DIVERGENCES) - {"adaptive_kl"})
"""Those that also compare the likeliest words and all others as one."""

MASK = torch.tensor([[True, True, False], [True, False, True]])
LABELS = torch.tensor([[1, 12, -100], [4, -100, 7]])


def random(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def head(seed, words=WORDS, bias=True, dim=DIM):
    """Hidden states of 6 rows, weight and bias."""
    weight = random(words, dim, seed=seed + 1)
    return random(2, 3, dim, seed=seed), weight, random(words, seed=seed + 2) if bias else None


def share(tensor, vocabulary):
    """This rank's rows of a tensor; those that only fill up are zero."""
    filled = tensor.new_zeros(vocabulary.group.size() * vocabulary.width, *tensor.shape[1:])
    filled[: len(tensor)] = tensor
    return filled[vocabulary.first : vocabulary.first + vocabulary.width].clone()


def divide(tensors, group):
    """Logits over the ranks of a group, and what is differentiated."""
    hidden, weight, bias = tensors
    vocabulary = DividedVocabulary(group, len(weight))
    own = [hidden.clone(), share(weight, vocabulary)]
    own += [] if bias is None else [share(bias, vocabulary)]
    own = [tensor.requires_grad_() for tensor in own]
    filled = vocabulary.fill_up(own[1], None if bias is None else own[2])
    return LinearLogits(own[0], own[1], filled, vocabulary), own


def solve(loss, logits, inputs, weights):
    term = loss(logits)
    total = term.mean() if weights is None else (term.values * weights).sum()
    return term.values, *torch.autograd.grad(total, inputs)


def apart(loss, whole_loss, tensors, group, weights=None):
    """How far values and gradients of a divided student are from those of a whole one."""
    whole = [tensor.clone().requires_grad_() for tensor in tensors if tensor is not None]
    logits, own = divide(tensors, group)
    missing = [None] * (3 - len(whole))
    found = solve(loss, logits, own, weights)
    values, hidden, *others = solve(whole_loss, LinearLogits(*whole, *missing), whole, weights)
    expected = [values, hidden, *(share(other, logits.divided) for other in others)]
    return max((x - y).abs().max().item() for x, y in zip(found, expected, strict=True))


def all_losses():
    over, group, found = Items.where("token", MASK), dist.group.WORLD, {}
    for name, compare in COMPARISONS.items():
        for bias in (True, False):
            teacher = head(10, bias=bias)
            loss, whole_loss = (
                partial(compare, teacher=known, over=over)
                for known in (divide(teacher, group)[0], LinearLogits(*teacher))
            )
            found[name, bias] = apart(loss, whole_loss, head(0, bias=bias), group)
            weights = random(2, 3, seed=5)
            found[name, bias, "weighted"] = apart(loss, whole_loss, head(0), group, weights)
            if name in MERGED:
                known = TopKLogits.of(LinearLogits(*teacher).dense(), 4, 2.0)
                merged = partial(compare, teacher=known, over=over)
                found[name, bias, "top-k"] = apart(merged, merged, head(0), group, weights)
    for bias in (True, False):
        for loss in (cross_entropy, hard_labels):
            hard = partial(loss, labels=LABELS, over=over)
            found[loss.__name__, bias] = apart(hard, hard, head(0, bias=bias), group)
    return found


def in_one_chunk_and_in_several():
    once = all_losses()
    chunked.CHUNK_ELEMENTS, chunked.FUSED_ROWS = 8, 1
    return once, all_losses()


@divergence
def own_kl(log_student, log_teacher, sum):
    return sum(log_teacher.exp() * (log_teacher - log_student))


@divergence
def sharpened(log_student, log_teacher, sum):
    squares = (2 * log_student).exp()
    total = sum(squares)
    q = squares / total.unsqueeze(-1)
    return sum((q - log_teacher.exp()).square()) + 0.1 * total.log()


def own_divergences():
    over, group, found = Items.where("token", MASK), dist.group.WORLD, {}
    chunked.CHUNK_ELEMENTS, chunked.FUSED_ROWS = 8, 1
    for loss, name in product((own_kl, sharpened), ("mean", "weighted")):
        weights = random(2, 3, seed=5) if name == "weighted" else None
        ours, theirs = (
            partial(loss, teacher=known, over=over, temperature=2.0)
            for known in (divide(head(10), group)[0], LinearLogits(*head(10)))
        )
        found[loss.__name__, name] = apart(ours, theirs, head(0), group, weights)
    found["kl"] = apart(
        partial(own_kl, teacher=divide(head(10), group)[0], over=over),
        partial(kl, teacher=LinearLogits(*head(10)), over=over),
        head(0),
        group,
    )
    return found


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_divergences_of_plugins_are_those_of_the_whole_vocabulary(on_ranks, ranks):
    for found in on_ranks(ranks, own_divergences):
        assert len(found) == 5
        assert max(found.values()) < 1e-12, found


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_values_and_gradients_are_those_of_the_whole_vocabulary(on_ranks, ranks):
    for each in on_ranks(ranks, in_one_chunk_and_in_several):
        for found in each:
            assert len(found) == 54
            assert max(found.values()) < 1e-12, found


def groups():
    """This rank's group of each size."""
    pairs, _ = dist.new_subgroups(2)
    alone, _ = dist.new_subgroups(1)
    return {1: alone, 2: pairs, 4: dist.group.WORLD}


WIDTHS = {"gathered head": DIM, "gathered logits": 8}
"""Of the teacher, whose head is larger or smaller than the logits of 6 rows."""


def other_degrees():
    over, by_size, found = Items.where("token", MASK), groups(), {}
    losses = {"soft": partial(soft_labels, temperature=2.0), "mse": logits_mse}
    vocabularies = (WORDS, WORDS - 2, WORDS + 2)
    for words, name, gathered in product(vocabularies, losses, WIDTHS):
        compare, teacher = losses[name], head(10, words=words, dim=WIDTHS[gathered])
        dense = LinearLogits(*teacher).dense()
        whole_loss = partial(compare, teacher=dense, over=over)
        known = {size: divide(teacher, group)[0] for size, group in by_size.items()}
        known |= {"plain": LinearLogits(*teacher), "dense": dense}
        for degree, logits in known.items():
            loss = partial(compare, teacher=logits, over=over)
            for size in (1, 2, 4):
                case = gathered, name, words, size, degree
                found[case] = apart(loss, whole_loss, head(0), by_size[size])
            student = LinearLogits(*head(0)).dense()
            ours, theirs = loss(student).values, whole_loss(student).values
            found[gathered, name, words, "dense", degree] = (ours - theirs).abs().max().item()
    return found


@pytest.mark.exhaustive
def test_a_teacher_may_be_divided_in_another_way_and_have_other_padding(on_ranks):
    for found in on_ranks(4, other_degrees):
        assert len(found) == 240
        assert max(found.values()) < 1e-12, found


def nothing_counts():
    over = Items.where("token", torch.zeros_like(MASK))
    logits, own = divide(head(0), dist.group.WORLD)
    losses = [
        kl(logits, divide(head(10), dist.group.WORLD)[0], over),
        hard_labels(logits, LABELS, over),
    ]
    found = [solve(lambda _, term=term: term, None, own, None) for term in losses]
    return [tensor.abs().max().item() for tensors in found for tensor in tensors]


def test_items_that_do_not_count_give_zero(on_ranks):
    assert on_ranks(2, nothing_counts) == [[0.0] * 8] * 2


def dense_logits():
    logits, own = divide(head(0), dist.group.WORLD)
    whole = LinearLogits(*head(0)).dense()
    weights = random(*whole.shape, seed=4)
    hidden, weight, bias = torch.autograd.grad((logits.dense() * weights).sum(), own)
    parts = [tensor.requires_grad_() for tensor in head(0)]
    expected = torch.autograd.grad((LinearLogits(*parts).dense() * weights).sum(), parts)
    shares = expected[0], *(share(tensor, logits.divided) for tensor in expected[1:])
    pairs = zip((logits.dense(), hidden, weight, bias), (whole, *shares), strict=True)
    return logits.shape == whole.shape, max((x - y).abs().max().item() for x, y in pairs)


def test_dense_logits_are_whole_and_differentiable(on_ranks):
    for same_shape, apart in on_ranks(4, dense_logits):
        assert same_shape
        assert apart < 1e-12


def counted(words, tokens, sent):
    """Numbers sent in the forward pass of each loss, in how many messages, and backward."""
    over = Items.where("token", torch.ones(1, tokens, dtype=torch.bool))
    labels = torch.zeros(1, tokens, dtype=torch.long)
    known, logits = (
        divide((random(1, tokens, DIM, seed=s), random(words, DIM, seed=s), None), dist.group.WORLD)
        for s in (0, 1)
    )
    losses = {name: partial(loss, teacher=known[0]) for name, loss in COMPARISONS.items()}
    losses["cross_entropy"] = partial(cross_entropy, labels=labels)
    found = {}
    for name, loss in losses.items():
        sent.clear()
        value = loss(logits[0], over=over).mean()
        forward = sum(sent)
        messages = len(sent)
        sent.clear()
        value.backward()
        found[name] = forward, messages, sum(sent)
    return found


def traffic(shapes):
    """What is counted for so many words and tokens."""
    sent = []
    reduce = dist.all_reduce

    def counting(tensor, *rest, **named):
        sent.append(tensor.numel())
        return reduce(tensor, *rest, **named)

    dist.all_reduce = counting
    dist.all_gather = pytest.fail
    return [counted(*shape, sent) for shape in shapes]


def test_a_few_numbers_per_token_are_sent_and_backward_the_gradient_of_hidden_states(on_ranks):
    few, many, longer = on_ranks(2, traffic, [(40, 6), (4000, 6), (40, 12)])[0]
    assert few == many
    for name, (forward, messages, backward) in few.items():
        # The head of the teacher is found by sums.
        more = HALVINGS + 5 if name == "adaptive_kl" else 0
        assert forward <= 6 * (6 + more)
        assert messages <= 4 + more
        assert backward == 6 * DIM
    assert {name: forward for name, (forward, *_) in longer.items()} == {
        name: 2 * forward for name, (forward, *_) in few.items()
    }


def find_most_likely():
    """The tokens found by each rank: of random logits, and of logits that are all equal."""
    vocabularies = []
    for bias in (True, False):
        logits, _ = divide(head(3, bias=bias), dist.group.WORLD)
        vocabularies.append(most_likely(logits).tolist())
    equal, _ = divide((torch.zeros(2, 3, DIM), torch.ones(WORDS, DIM), None), dist.group.WORLD)
    return [*vocabularies, most_likely(equal).tolist()]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_the_most_likely_token_is_that_of_the_whole_vocabulary(on_ranks, ranks):
    expected = []
    for bias in (True, False):
        hidden, weight, offset = head(3, bias=bias)
        expected.append(torch.nn.functional.linear(hidden, weight, offset).argmax(-1).tolist())
        assert most_likely(LinearLogits(hidden, weight, offset)).tolist() == expected[-1]
    first = [[0, 0, 0], [0, 0, 0]]
    assert on_ranks(ranks, find_most_likely) == [[*expected, first]] * ranks
