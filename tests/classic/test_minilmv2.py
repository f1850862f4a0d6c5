"""Relations of queries, keys and values, split into heads anew."""

from math import exp, log, sqrt

import pytest
import torch

from gkd_core.api import MethodError, Models
from gkd_methods_classic.minilmv2 import MiniLMv2

SITES = ("query", "key", "value")


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def heads_of(vectors, heads):
    """Return `[B, S, W]` as the model has it, `[B, A, S, Dh]`."""
    return vectors.unflatten(-1, (heads, -1)).transpose(1, 2)


@pytest.fixture
def minilmv2(terms):
    def _minilmv2(student, teacher, mask=None, **options):
        """Give the same vectors for all three sites, or a dict of them."""
        layer = options.get("teacher_layer", -1)
        learned = student if isinstance(student, dict) else dict.fromkeys(SITES, student)
        known = teacher if isinstance(teacher, dict) else dict.fromkeys(SITES, teacher)
        length = learned["query"].shape[2]
        return terms(
            MiniLMv2(MiniLMv2.Config(**{"relation_heads": 2} | options)),
            {f"{site}[last]": tensor for site, tensor in learned.items()},
            {f"{site}[{layer}]": tensor for site, tensor in known.items()},
            mask=torch.ones(1, length) if mask is None else mask,
        )

    return _minilmv2


def test_relations_are_scaled_by_the_width_of_a_relation_head(minilmv2):
    # One relation head: rows of X X^T / sqrt 2 are (1 / sqrt 2, 0); the student's are all 0.
    teacher = torch.eye(2, dtype=torch.float64)[None, None]
    p = exp(1 / sqrt(2)) / (1 + exp(1 / sqrt(2)))
    found = minilmv2(torch.zeros_like(teacher), teacher, relation_heads=1)
    expected = p * log(2 * p) + (1 - p) * log(2 * (1 - p))
    assert {name: term.item() for name, term in found.items()} == {
        site: pytest.approx(expected, abs=1e-12) for site in SITES
    }


def test_heads_of_the_models_are_joined_before_they_are_split(minilmv2):
    vectors = random(1, 3, 12)
    found = minilmv2(heads_of(vectors, 6), heads_of(vectors, 3))
    assert max(term.item() for term in found.values()) < 1e-12


def test_models_may_differ_in_width_and_heads(minilmv2):
    found = minilmv2(random(1, 3, 5, 4), random(1, 12, 5, 8, seed=1), relation_heads=6)
    assert all(0 < term.item() < 10 for term in found.values())


def test_each_relation_head_may_be_turned_but_not_stretched(minilmv2):
    vectors = random(1, 3, 4)
    turn, _ = torch.linalg.qr(random(2, 2, seed=1))
    turned = vectors @ torch.block_diag(turn, turn.T)
    found = minilmv2(heads_of(turned, 1), heads_of(vectors, 2))
    assert max(term.item() for term in found.values()) < 1e-12
    stretched = minilmv2(heads_of(2 * vectors, 1), heads_of(vectors, 2))
    assert min(term.item() for term in stretched.values()) > 1e-3


def test_padding_is_neither_asked_nor_attended_to(minilmv2):
    def values(padding):
        end = torch.full((1, 1, 4), padding, dtype=torch.float64)
        student, teacher = (torch.cat([random(1, 3, 4, seed=s), end], dim=1) for s in (0, 1))
        found = minilmv2(
            heads_of(student, 2), heads_of(teacher, 1), mask=torch.tensor([[1, 1, 1, 0]])
        )
        return [term.item() for term in found.values()]

    assert values(0.0) == values(1.5)


def test_terms_have_weights(minilmv2):
    student, teacher = random(1, 2, 3, 2), random(1, 2, 3, 2, seed=1)
    found = minilmv2(student, teacher)
    weighed = minilmv2(student, teacher, query_weight=0, key_weight=0.5)
    assert weighed["query"].item() == 0
    assert weighed["key"].item() == pytest.approx(found["key"].item() / 2)
    assert weighed["value"] == found["value"]


@pytest.mark.parametrize(
    ("teacher", "heads"),
    [({}, 48), ({"hidden_size": 1024, "heads": 16}, 64)],
    ids=["base", "large"],
)
def test_the_number_of_relation_heads_is_the_papers(info, teacher, heads):
    """312 = 2^3 * 3 * 13 is what TinyBERT-4 has; 24 and 8 divide it and the teacher's width."""
    largest = {48: 24, 64: 8}[heads]
    message = (
        f"into {heads} relation heads, but the query of the student is 312 wide. "
        f"Set minilmv2.relation_heads={largest} "
    )
    student = info("student", 4, hidden_size=312)
    with pytest.raises(MethodError, match=message):
        MiniLMv2().check(Models(student, info("teacher", **teacher)))
    method = MiniLMv2(MiniLMv2.Config(relation_heads=largest))
    method.check(Models(student, info("teacher", **teacher)))


def test_shared_keys_and_values_are_narrower_and_must_be_divided_too(info):
    student = info("student", hidden_size=768, heads=12, kv_heads=2)
    message = "the key of the student is 128 wide. Set minilmv2.relation_heads=32 "
    with pytest.raises(MethodError, match=message):
        MiniLMv2().check(Models(student, info("teacher")))
