"""Properties that all methods of the package share."""

import pytest
from tests.grids import first_of

from gkd_core.plugins import registry
from gkd_core.testing import check_method
from gkd_methods_intermediate.match import Match
from gkd_methods_intermediate.matching.knowledge import PRESETS

METHODS = [name for name in registry().methods if registry().provider(name).name == "intermediate"]
KNOWLEDGE = [name for name in PRESETS if name != "custom"]
LANGUAGE_MODEL = ["causal-lm"]


class FixedMatch(Match):
    """`match` with layers that do not depend on what they cost: its samples are independent."""

    name = "fixed-match"
    batch_coupled = False


@pytest.mark.parametrize("name", METHODS)
def test_method_has_the_properties_every_method_must_have(name):
    check_method(registry().method(name), {}, ["classification"])


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", METHODS)
def test_it_has_them_on_all_its_kinds_with_each_option_at_its_edges(name):
    check_method(registry().method(name))


@pytest.mark.parametrize("knowledge", first_of(KNOWLEDGE, 2))
def test_every_knowledge_type_has_them_and_keeps_samples_apart(knowledge, kinds):
    check_method(FixedMatch, {"terms": [{"knowledge": knowledge}]}, kinds)


@pytest.mark.parametrize(
    "term",
    first_of(
        [
            {"knowledge": "hidden-mse", "layers": "last", "projection": "linear"},
            {"knowledge": "hidden-pkd", "layers": "top", "projection": "tanh", "per_layer": True},
            {"knowledge": "hidden-gram", "span": 1, "projection": "relu"},
            {"knowledge": "hidden-nst", "span": 2, "layers": [[1, 2], [2, 3]], "embedding": True},
            {"knowledge": "value-relation", "layers": "first1", "heads": 8},
            {"knowledge": "attention-ce", "layers": "last1", "weight": "linear(1 -> 0)"},
            {"site": "attention", "distance": "js", "heads": "sum"},
            {"site": "context", "distance": "huber", "positions": "mean"},
            {"site": "normed", "relation": "tokens", "distance": "reverse-kl", "heads": 4},
            {"site": "ffn", "relation": "channels", "distance": "normalized"},
            {"site": "normed", "distance": "mse", "positions": "cls"},
            {"site": "embedding", "distance": "cosine", "positions": "mean"},
            {"site": "pooled", "distance": "mse", "projection": "linear"},
            {"site": "query", "distance": "mse", "layers": "top"},
            {"site": "logits", "distance": "total-variation", "temperature": "linear(4 -> 1)"},
        ],
        2,
    ),
    ids=lambda term: "-".join(map(str, term.values())),
)
def test_other_terms_have_them_too(term, kinds):
    check_method(FixedMatch, {"terms": [term]}, kinds)


@pytest.mark.parametrize(
    "term",
    [
        {"knowledge": "logits-ce", "positions": "tokens"},
        {"knowledge": "hidden-mse", "positions": "targets"},
        {"knowledge": "query-relation", "positions": "targets"},
    ],
    ids=lambda term: term["knowledge"],
)
def test_terms_of_language_models_have_them(term):
    check_method(FixedMatch, {"terms": [term]}, LANGUAGE_MODEL)


@pytest.mark.parametrize("layers", ["emd", "monotone"])
@pytest.mark.parametrize("knowledge", first_of(["hidden-mse", "attention-mse", "key-relation"]))
def test_terms_with_assigned_layers_have_them(knowledge, layers, kinds):
    check_method(Match, {"terms": [{"knowledge": knowledge, "layers": layers}]}, kinds)


def test_assigned_layers_couple_the_samples():
    options = {"terms": [{"knowledge": "hidden-mse", "layers": "monotone"}]}
    with pytest.raises(AssertionError, match="micro-batches change the gradient"):
        check_method(FixedMatch, options)


@pytest.mark.exhaustive
def test_several_terms_add_up(kinds):
    check_method(FixedMatch, {"terms": [{"knowledge": name} for name in KNOWLEDGE]}, kinds)
