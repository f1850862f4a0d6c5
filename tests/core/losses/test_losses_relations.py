"""Losses between relations; references are computed from the dense distributions in fp64."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from gkd_core.contract.batch import Items
from gkd_core.losses import Relation, chunked, relation_kl, relation_mse, self_relation
from gkd_core.losses.relation import RelationBlock

B, A, S = 2, 4, 5
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
OVER = Items.where("token", MASK)
KEYS = MASK[:, None, None, :]
LEAST = torch.finfo(torch.float64).min


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def relation(seed=0, width=6, key_heads=A, mask=KEYS, causal=False, bias=None):
    query = normal(B, A, S, width, seed=seed).requires_grad_()
    key = normal(B, key_heads, S, width, seed=seed + 1).requires_grad_()
    return Relation(query, key, mask, causal, width**-0.5, bias)


PAST = torch.ones(S, S, dtype=torch.bool).tril()
KINDS = {
    "bool": {"mask": KEYS},
    "bool per query": {"mask": KEYS & PAST},
    "additive": {"mask": torch.zeros(B, 1, 1, S).double().masked_fill(~KEYS, LEAST)},
    "causal": {"mask": None, "causal": True},
    "nothing": {"mask": None},
    "grouped": {"key_heads": 2},
    "one key head": {"key_heads": 1},
}


def dense_kl(student, teacher):
    p, log_q = teacher.probs().detach(), student.scores().log_softmax(-1)
    return torch.where(p > 0, p * (p.log() - log_q), 0.0).sum(-1).mean(1)


def dense_mse(student, teacher):
    s, t = student.scores(), teacher.scores().detach()
    seen = s > -1e4
    return (torch.where(seen, s - t, 0.0).square().sum(-1) / seen.sum(-1)).mean(1)


LOSSES = {"kl": (relation_kl, dense_kl), "mse": (relation_mse, dense_mse)}


def inputs(student):
    return [x for x in (student.query, student.key, student.bias) if x is not None]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("elements", [2**21, 12, 60, 1])
def test_value_and_gradient_are_those_of_the_dense_version(loss, kind, elements, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", elements)
    student, teacher = relation(**KINDS[kind]), relation(3, 8, **KINDS[kind])
    ours, dense = LOSSES[loss]
    term = ours(student, teacher, OVER)
    expected = torch.where(MASK, dense(student, teacher), 0.0)
    torch.testing.assert_close(term.values, expected)
    torch.testing.assert_close(
        torch.autograd.grad(term.mean(), inputs(student)),
        torch.autograd.grad(expected.sum() / OVER.count, inputs(student)),
    )


QUICK = {("kl", "causal", "mean")}
GRADIENTS = [
    pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.exhaustive])
    for case in product(LOSSES, ["bool", "causal", "grouped"], ["weighted", "mean"])
]


@pytest.mark.parametrize(("loss", "kind", "weights"), GRADIENTS)
def test_gradients_are_exact(loss, kind, weights):
    student, teacher = relation(**KINDS[kind]), relation(3, 8, **KINDS[kind])
    bias = normal(1, A, S, S, seed=7).requires_grad_()

    def value(query, key, bias):
        rows = replace(student, query=query, key=key, bias=bias)
        term = LOSSES[loss][0](rows, teacher, OVER)
        return term.mean() if weights == "mean" else (term.values * normal(B, S).abs()).sum()

    assert torch.autograd.gradcheck(value, (student.query, student.key, bias))
    assert teacher.query.grad is None


def test_a_relation_to_itself_gets_the_gradient_of_both_sides():
    x, teacher = normal(B, S, 12).requires_grad_(), self_relation(normal(B, S, 8, seed=1), 4, MASK)
    loss = relation_kl(self_relation(x, 4, MASK), teacher, OVER).mean()
    heads = x.view(B, S, 4, 3).transpose(1, 2)
    scores = (heads @ heads.mT / math.sqrt(3)).masked_fill(~KEYS, LEAST)
    p = teacher.probs()
    values = functional.kl_div(scores.log_softmax(-1), p, reduction="none").sum(-1).mean(1)
    expected = values[MASK].mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(expected, x))


def rows(probs):
    """Return a relation of one query whose distribution is given."""
    query = torch.tensor(probs, dtype=torch.float64).log()[None, None, None]
    return Relation(query, torch.eye(len(probs), dtype=torch.float64)[None, None], None, False, 1.0)


def test_attention_kl_has_the_golden_value_of_minilm():
    one = Items.where("token", torch.tensor([[True]]))
    value = relation_kl(rows([0.5, 0.5]), rows([0.9, 0.1]), one).mean().item()
    assert value == pytest.approx(0.368064, abs=1e-6)
    # What a second softmax of the distributions would give.
    assert value != pytest.approx(0.074026, abs=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_relations_give_zero_and_no_gradient(loss):
    student = relation()
    term = LOSSES[loss][0](student, student, OVER)
    gradients = torch.autograd.grad(term.mean(), inputs(student))
    assert term.values.abs().max() < 1e-12
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients)


def test_rotating_the_vectors_of_a_head_changes_nothing():
    x, teacher = normal(B, S, 12), self_relation(normal(B, S, 8, seed=1), 2, MASK)
    turn = torch.block_diag(*(torch.linalg.qr(normal(6, 6, seed=i)).Q for i in (2, 3)))
    value = relation_kl(self_relation(x, 2, MASK), teacher, OVER).values
    turned = relation_kl(self_relation(x @ turn, 2, MASK), teacher, OVER).values
    scaled = relation_kl(self_relation(2 * x, 2, MASK), teacher, OVER).values
    torch.testing.assert_close(turned, value)
    assert not torch.allclose(scaled, value)


@pytest.mark.parametrize("loss", LOSSES)
def test_permuting_the_heads_of_both_changes_nothing(loss):
    student, teacher = relation(), relation(3)
    order = [2, 0, 3, 1]
    permuted = [
        replace(r, query=r.query[:, order], key=r.key[:, order]) for r in (student, teacher)
    ]
    ours = LOSSES[loss][0]
    torch.testing.assert_close(ours(*permuted, OVER).values, ours(student, teacher, OVER).values)
    assert not torch.allclose(
        ours(permuted[0], teacher, OVER).values, ours(student, teacher, OVER).values
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_what_padded_positions_hold_does_not_matter(loss):
    student, teacher = relation(), relation(3)
    changed = replace(
        student,
        query=student.query.detach().masked_fill(~MASK[:, None, :, None], 7.0).requires_grad_(),
        key=student.key.detach().masked_fill(~MASK[:, None, :, None], -9.0).requires_grad_(),
    )
    results = []
    for rows in (student, changed):
        term = LOSSES[loss][0](rows, teacher, OVER)
        gradients = torch.autograd.grad(term.mean(), inputs(rows))
        results.append((term.values, *gradients))
        assert (term.values[~MASK] == 0).all()
        for gradient in gradients:
            assert (gradient.transpose(1, 2)[~MASK] == 0).all()
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("loss", LOSSES)
def test_more_padding_changes_nothing(loss):
    student, teacher = relation(), relation(3)
    mask = functional.pad(MASK, (0, 3))
    padded = [
        Relation(
            functional.pad(r.query, (0, 0, 0, 3)),
            functional.pad(r.key, (0, 0, 0, 3)),
            mask[:, None, None, :],
            False,
            r.scale,
        )
        for r in (student, teacher)
    ]
    ours = LOSSES[loss][0]
    torch.testing.assert_close(
        ours(*padded, Items.where("token", mask)).mean(), ours(student, teacher, OVER).mean()
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_that_counts_gives_zero_not_nan(loss):
    student = relation(mask=torch.zeros(B, 1, 1, S, dtype=torch.bool))
    nothing = Items.where("token", torch.zeros(B, S, dtype=torch.bool))
    value = LOSSES[loss][0](student, relation(3), nothing).mean()
    gradients = torch.autograd.grad(value, inputs(student))
    assert value.item() == 0
    assert all((gradient == 0).all() for gradient in gradients)


def test_nothing_of_the_size_of_the_scores_is_kept():
    student, teacher = relation(width=2), relation(3, 2)
    sizes = []
    with saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        relation_kl(student, teacher, OVER)
    assert sizes
    assert max(sizes) == B * A * S * 2 < B * A * S * S


def test_half_precision_is_computed_in_fp32():
    pair = [relation(seed) for seed in (0, 3)]
    rough = [replace(r, query=r.query.bfloat16(), key=r.key.bfloat16()) for r in pair]
    exact = [replace(r, query=r.query.double(), key=r.key.double()) for r in rough]
    with torch.autocast("cpu", torch.bfloat16):
        values = relation_kl(*rough, OVER).values
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, relation_kl(*exact, OVER).values.float())


def test_samples_are_related_as_positions_of_one_sequence():
    over = Items.where("sample", torch.tensor([True, True, True, False]))
    student, teacher = normal(4, 6).requires_grad_(), normal(4, 8, seed=1)
    pair = [self_relation(x[None], 2, over.mask[None]) for x in (student, teacher)]
    term = relation_kl(*pair, over)
    assert term.values.shape == over.mask.shape
    torch.testing.assert_close(term.values[:3], dense_kl(*pair)[0, :3])
    gradient = torch.autograd.grad(term.mean(), student)[0]
    assert gradient[:3].abs().min() > 0
    assert (gradient[3] == 0).all()


def test_heads_that_differ_in_number_are_refused():
    few = self_relation(normal(B, S, 12), 2, MASK)
    with pytest.raises(ValueError, match="differ in samples, heads or positions"):
        relation_kl(few, relation(), OVER)


def test_items_must_be_the_queries():
    over = Items.where("sample", torch.ones(B, dtype=torch.bool))
    with pytest.raises(ValueError, match="one query per sample"):
        relation_kl(relation(), relation(3), over)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_known_scores_stand_for_the_vectors_they_are_of(loss, kind):
    student, teacher = relation(**KINDS[kind]), relation(3, 8, **KINDS[kind])
    scores = teacher.scores().detach()
    known = Relation.of_scores(scores.masked_fill(scores == LEAST, -math.inf))
    assert known.shape == teacher.shape
    assert torch.equal(known.scores(), scores)
    values = [LOSSES[loss][0](student, each, OVER).values for each in (known, teacher)]
    torch.testing.assert_close(*values)


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 12 cannot be split into 5"):
        self_relation(normal(B, S, 12), 5, MASK)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_has_the_scores_of_its_rows(kind):
    whole = relation(bias=normal(1, A, S, S, seed=7), **KINDS[kind])
    block = RelationBlock(slice(1, 2), slice(1, 3), slice(2, 4))
    torch.testing.assert_close(whole.part(block).scores(), whole.scores()[1:2, 1:3, 2:4])
