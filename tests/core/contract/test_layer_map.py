from itertools import pairwise

import pytest
from pydantic import BaseModel, ValidationError

from gkd_core.errors import ConfigError, MethodError
from gkd_core.models.layer_map import LayerMap, init_layers, layer_pairs


class Options(BaseModel):
    layers: LayerMap = "spaced"


@pytest.mark.parametrize(
    ("layer_map", "teacher_blocks"),
    [("first", [1, 2, 3]), ("last", [10, 11, 12]), ("spaced", [4, 8, 12])],
)
def test_strategy_pairs_every_student_block(layer_map, teacher_blocks):
    assert layer_pairs(layer_map, 3, 12) == list(zip([1, 2, 3], teacher_blocks, strict=True))


def test_spaced_ends_at_the_last_block_when_depths_do_not_divide():
    assert layer_pairs("spaced", 4, 6) == [(1, 1), (2, 3), (3, 4), (4, 6)]


@pytest.mark.parametrize(
    ("layer_map", "pairs"),
    [
        ("first2", [(1, 1), (2, 2)]),
        ("last2", [(3, 11), (4, 12)]),
        ("last1", [(4, 12)]),
        ("top", [(4, 12)]),
        ("first4", [(1, 1), (2, 2), (3, 3), (4, 4)]),
    ],
)
def test_strategy_pairs_some_blocks_in_order(layer_map, pairs):
    assert layer_pairs(layer_map, 4, 12) == pairs


@pytest.mark.parametrize("strategy", ["first", "last", "spaced", "first4", "last4"])
def test_models_of_equal_depth_are_paired_block_by_block(strategy):
    assert layer_pairs(strategy, 4, 4) == [(1, 1), (2, 2), (3, 3), (4, 4)]


@pytest.mark.parametrize("depths", [(1, 1), (2, 5), (4, 6), (5, 12), (6, 12), (7, 7)])
@pytest.mark.parametrize("strategy", ["first", "last", "spaced", "first1", "last1", "top"])
def test_every_strategy_keeps_the_order_of_both_models(strategy, depths):
    pairs = layer_pairs(strategy, *depths)
    assert all(a < c and b < d for (a, b), (c, d) in pairwise(pairs))
    assert all(1 <= s <= depths[0] and 1 <= t <= depths[1] for s, t in pairs)


def test_top_pairs_a_student_that_is_deeper_than_the_teacher():
    assert layer_pairs("top", 6, 4) == [(6, 4)]
    assert layer_pairs("last2", 6, 4) == [(5, 3), (6, 4)]


@pytest.mark.parametrize("strategy", ["first5", "last5"])
def test_more_blocks_than_a_model_has_are_refused(strategy):
    message = f"'{strategy}' needs 5 blocks in both models, but the student has 4 and the teacher 6"
    with pytest.raises(MethodError, match=message):
        layer_pairs(strategy, 4, 6)


def test_unknown_strategy_is_refused_with_the_nearest():
    with pytest.raises(MethodError, match=r"'space' is not a layer map\. Did you mean 'spaced'"):
        layer_pairs("space", 2, 4)


def test_explicit_pairs_are_kept():
    assert layer_pairs([(1, 4), (3, 2)], 3, 12) == [(1, 4), (3, 2)]


@pytest.mark.parametrize("strategy", ["first", "last", "spaced"])
def test_deeper_student_is_refused_with_both_depths(strategy):
    with pytest.raises(MethodError, match=r"student has 6 blocks and the teacher 4"):
        layer_pairs(strategy, 6, 4)
    with pytest.raises(ConfigError, match=r"student.layers is 6 and the teacher has 4"):
        init_layers(strategy, 6, 4)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(4, 1)], "names student block 4, but the student has blocks 1 to 3"),
        ([(1, 13)], "names teacher block 13, but the teacher has blocks 1 to 12"),
        ([(1, 0)], "names teacher block 0"),
        ([(2, 1), (1, 2)], "student block 1 after 2"),
        ([(2, 1), (2, 2)], "student block 2 after 2"),
        ([], "empty"),
    ],
)
def test_wrong_pairs_are_refused(pairs, message):
    with pytest.raises(MethodError, match=message):
        layer_pairs(pairs, 3, 12)


def test_layer_map_is_an_option_type():
    assert Options(layers=[[1, 2], [2, 4]]).layers == [(1, 2), (2, 4)]
    assert Options(layers="last2").layers == "last2"
    for wrong in ("middle", "last0", "top2", "last 2", [[0, 1]], [[1, 2, 3]]):
        with pytest.raises(ValidationError):
            Options(layers=wrong)


def test_init_follows_the_strategies_and_lists():
    assert init_layers("first", 2, 6) == [1, 2]
    assert init_layers("last", 2, 6) == [5, 6]
    assert init_layers("spaced", 2, 6) == [3, 6]
    assert init_layers([6, 1, 1], 3, 6) == [6, 1, 1]


@pytest.mark.parametrize(
    ("init", "message"),
    [([1, 2], "lists 2 teacher blocks, but the student has 3"), ([1, 2, 7], "teacher block 7")],
)
def test_wrong_init_list_names_the_setting(init, message):
    with pytest.raises(ConfigError, match=f"student.init.*{message}"):
        init_layers(init, 3, 6)
