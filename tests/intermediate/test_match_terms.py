"""What a description may say, and how it is refused."""

import json
import math

import pytest
import torch
from pydantic import ValidationError

from gkd_core.api import MethodError
from gkd_methods_intermediate.match import Match
from gkd_methods_intermediate.matching.knowledge import PRESETS

KNOWLEDGE = [name for name in PRESETS if name != "custom"]


def config(*terms):
    """Read a description as a run file is read."""
    return Match.Config.model_validate_json(json.dumps({"terms": terms}), strict=True)


def written(*terms):
    return config(*terms).model_dump(mode="json")["terms"]


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_what_is_written_back_reads_the_same(knowledge):
    found = config({"knowledge": knowledge})
    again = written({"knowledge": knowledge})
    assert config(*again) == found
    assert again[0]["knowledge"] == again[0]["name"] == knowledge
    assert None not in again[0].values()


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_a_knowledge_type_is_short_for_its_options(knowledge):
    (term,) = written({"knowledge": knowledge})
    (spelt,) = written(term | {"knowledge": "custom"})
    assert spelt | {"knowledge": knowledge} == term


def test_only_options_with_a_meaning_are_written():
    assert written({"knowledge": "logits-ce"}) == [
        {
            "name": "logits-ce",
            "knowledge": "logits-ce",
            "site": "logits",
            "distance": "cross-entropy",
            "positions": "targets",
            "temperature": 1.0,
            "weight": 1.0,
        }
    ]


def test_embedding_outputs_belong_to_hidden_states_unless_pairs_are_listed():
    for knowledge in ("hidden-mse", "hidden-gram", "hidden-nst"):
        assert config({"knowledge": knowledge}).terms[0].embedding
        assert not config({"knowledge": knowledge, "layers": [[1, 2]]}).terms[0].embedding
        assert not config({"knowledge": knowledge, "embedding": False}).terms[0].embedding
    assert not config({"knowledge": "hidden-cosine"}).terms[0].embedding


def test_terms_have_names_of_their_own():
    custom = {"site": "ffn", "distance": "huber"}
    found = config(custom, {"knowledge": "hidden-mse"}, custom, custom | {"name": "last"})
    assert [term.name for term in found.terms] == ["ffn-huber", "hidden-mse", "ffn-huber-2", "last"]
    with pytest.raises(ValidationError, match="two terms are named 'last'"):
        config(custom | {"name": "last"}, custom | {"name": "last"})


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({}, "give `knowledge`, or both `site` and `distance`"),
        ({"site": "hidden"}, "give `knowledge`, or both"),
        ({"knowledge": "hidden-mes"}, "'hidden-mse'"),
        ({"knowledge": "logits-ce", "temperature": -1}, "must stay above 0, got -1"),
        ({"knowledge": "logits-ce", "temperature": "linear(2 -> 0)"}, "must stay above 0"),
        (
            {"knowledge": "hidden-mse", "distance": "cosine"},
            "knowledge 'hidden-mse' has distance = 'mse', not 'cosine'; remove one of them",
        ),
        ({"knowledge": "attention-mse", "heads": "sum"}, "has heads = 'each', not 'sum'"),
        (
            {"knowledge": "logits-mse", "layers": "first"},
            "`layers` does not apply to site 'logits'",
        ),
        ({"knowledge": "logits-mse", "temperature": 2}, "`temperature` does not apply"),
        ({"knowledge": "attention-ce", "projection": "linear"}, "`projection` does not apply"),
        ({"knowledge": "hidden-mse", "span": 1}, "`span` does not apply to site 'hidden'"),
        ({"knowledge": "hidden-gram", "span": 1, "layers": "emd"}, "`span` does not apply"),
        ({"knowledge": "hidden-nst", "projection": "tanh"}, "with relation 'tokens'; remove it"),
        ({"site": "embedding", "distance": "mse", "per_layer": True}, "`per_layer` does not apply"),
        ({"site": "hidden", "distance": "kl"}, "'kl' compares distributions, which site 'hidden'"),
        (
            {"site": "hidden", "relation": "channels", "distance": "js"},
            "which site 'hidden' with relation 'channels' does not provide",
        ),
        (
            {"site": "value", "distance": "mse", "positions": "cls"},
            "positions = 'cls' requires one vector per position",
        ),
        (
            {"site": "hidden", "relation": "tokens", "distance": "mse", "positions": "mean"},
            "positions = 'mean' requires one vector",
        ),
        (
            {"site": "attention", "distance": "mse", "heads": "merged"},
            "heads = 'merged' does not fit site 'attention'; choose one of auto, each, mean, sum",
        ),
        (
            {"site": "ffn", "relation": "tokens", "distance": "kl", "heads": "each"},
            "choose one of auto, merged",
        ),
        ({"site": "attention", "distance": "kl", "heads": 4}, "cannot be re-split"),
        ({"knowledge": "hidden-mse", "layers": "middle"}, "layers"),
        ({"knowledge": "hidden-mse", "layers": [[0, 1]]}, "greater than or equal to 1"),
        ({"knowledge": "hidden-mse", "weight": "linear(1)"}, "weight"),
        ({"knowledge": "hidden-mse", "distence": "mse"}, "distence"),
        ({"knowledge": "hidden-mse", "name": "Hidden.Mse"}, "name"),
    ],
)
def test_a_term_that_says_something_wrong_is_refused(term, message):
    with pytest.raises(ValidationError, match=message):
        config(term)


def test_a_description_has_a_term():
    with pytest.raises(ValidationError, match="at least 1"):
        config()


@pytest.mark.parametrize(
    ("shape", "term", "message"),
    [
        (
            {"heads": (2, 4)},
            {"knowledge": "attention-mse"},
            r"match\.terms\.1 \(attention-mse\): scores are compared head by head, but the student "
            "has 2 query heads and the teacher 4",
        ),
        (
            {"heads": (4, 4), "kv_heads": (2, 4)},
            {"knowledge": "key-relation", "heads": "each"},
            "student has 2 key-value heads and the teacher 4. Use heads = 'merged'",
        ),
        (
            {},
            {"knowledge": "value-relation", "heads": 3},
            "heads = 3 must divide the width of value, which is 8 in the student",
        ),
        (
            {"head_size": (3, 4)},
            {"knowledge": "hidden-mse", "projection": "none"},
            "projection = 'none', but hidden is 6 wide in the student and 8 in the teacher",
        ),
        (
            {"heads": (4, 4), "kv_heads": (2, 4)},
            {"site": "key", "distance": "mse", "projection": "none"},
            "key is 8 wide in the student and 16 in the teacher",
        ),
        ({}, {"knowledge": "hidden-mse", "layers": [[3, 4]]}, "student block 3, but the student"),
        ({}, {"knowledge": "hidden-mse", "layers": "last3"}, "'last3' needs 3 blocks"),
        ({"layers": (4, 2)}, {"knowledge": "hidden-mse"}, "student no deeper than the teacher"),
        ({"layers": (4, 2)}, {"knowledge": "hidden-pkd", "layers": "monotone"}, "use 'emd'"),
        (
            {},
            {"knowledge": "hidden-gram", "layers": "top", "embedding": False, "span": 1},
            "span = 1 requires more than 1 pairs of layers, but layers = 'top' gives fewer",
        ),
        ({}, {"knowledge": "hidden-mse", "positions": "targets"}, "of a language model"),
        ({}, {"knowledge": "logits-ce", "positions": "tokens"}, "which a classifier does not have"),
        ({"labels": 1}, {"knowledge": "logits-ce"}, "one value. Use knowledge 'logits-mse'"),
    ],
)
def test_models_that_a_term_cannot_compare_are_refused(scene, shape, term, message):
    with pytest.raises(MethodError, match=message):
        scene(**shape).terms({"site": "pooled", "distance": "mse"}, term)


def test_emd_pairs_a_student_that_is_deeper_than_the_teacher(scene):
    assert scene(layers=(4, 2)).loss(knowledge="hidden-mse", layers="emd").item() > 0


def test_reads_are_what_the_terms_compare(scene):
    world = scene()

    def reads(**term):
        world.terms(term)
        return list(world.method.reads(world.models, None))

    assert reads(knowledge="hidden-pkd", layers="top") == [
        "student.hidden[2]|cls",
        "teacher.hidden[4]|cls",
    ]
    assert reads(site="normed", distance="mse", positions="mean") == [
        "student.hidden[last].normed|mean",
        "teacher.hidden[last].normed|mean",
    ]
    assert reads(knowledge="logits-ce") == ["student.logits", "teacher.logits"]
    assert reads(knowledge="attention-ce", layers="emd") == [
        *(f"student.attention[{layer}]" for layer in (1, 2)),
        *(f"teacher.attention[{layer}]" for layer in (1, 2, 3, 4)),
    ]


@pytest.mark.parametrize(
    ("term", "names"),
    [
        ({"knowledge": "hidden-mse"}, ["hidden-mse"]),
        (
            {"knowledge": "hidden-mse", "per_layer": True},
            ["hidden-mse 0", "hidden-mse 1", "hidden-mse 2"],
        ),
        (
            {"knowledge": "hidden-pkd", "layers": "emd", "per_layer": True, "name": "a"},
            ["a 1", "a 2"],
        ),
        ({"knowledge": "hidden-nst"}, []),
        ({"knowledge": "query-relation"}, []),
    ],
)
def test_projections_are_made_where_widths_differ(scene, term, names):
    world = scene(head_size=(3, 4))
    world.terms(term)
    assert list(world.method.modules) == names
    same = scene()
    same.terms(term)
    assert not same.method.modules


@pytest.mark.parametrize(
    ("projection", "least", "most"),
    [("linear", -math.inf, math.inf), ("relu", 0, math.inf), ("tanh", -1, 1)],
)
def test_projections_are_a_map_with_small_weights_and_an_activation(scene, projection, least, most):
    world = scene(head_size=(40, 30))
    world.terms({"knowledge": "hidden-mse", "projection": projection})
    module = world.method.modules["hidden-mse"]
    linear = module if projection == "linear" else module[0]
    assert linear.weight.shape == (60, 80)
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not linear.bias.any()
    found = module(torch.linspace(-100, 100, 80, dtype=torch.float64))
    assert least <= found.min() < found.max() <= most
    assert (found.min() < 0) == (projection != "relu")
