"""Degrees of parallelism that do not fit are refused before anything is loaded."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from gkd_core.distributed.layout import Layout
from gkd_core.errors import ConfigError
from gkd_core.parallel.divisibility import check_divisible


def config(family, **changes):
    return AutoConfig.for_model(family, **changes)


def test_ranks_that_do_not_share_a_student_see_different_rows():
    assert Layout(world=8, tensor=2, teachers={"big": 4}).data == 4
    assert Layout(world=4).data == 4
    assert Layout(world=4).is_whole
    assert not Layout(world=4, teachers={"big": 2}).is_whole


def test_a_degree_must_divide_the_processes():
    with pytest.raises(ConfigError) as refused:
        Layout(world=8, tensor=3)
    assert str(refused.value) == (
        "parallel.tensor = 3 does not divide the number of processes (8 % 3 = 2); "
        "choose one of 1, 2, 4, 8, or start more (--nproc)"
    )
    with pytest.raises(ConfigError, match=r"teacher.tensor = 5 does not .* \(6 % 5 = 1\)"):
        Layout(world=6, teachers={"big": 5})
    with pytest.raises(ConfigError, match=r"parallel.tensor = 0"):
        Layout(world=2, tensor=0)


def test_groups_that_share_a_model_must_lie_inside_each_other():
    with pytest.raises(ConfigError, match=r"teachers.b.tensor = 3 and teachers.a.tensor = 2 "):
        Layout(world=6, teachers={"a": 2, "b": 3})
    with pytest.raises(ConfigError, match=r"= 3 and parallel.tensor = 2 .*\(3 % 2 = 1\)"):
        Layout(world=6, tensor=2, teachers={"big": 3})


@pytest.mark.parametrize("degree", [1, 2, 4])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama", "qwen3"])
def test_families_with_a_plan_can_be_divided(family, degree):
    check_divisible(config(family), degree, "parallel.tensor")


def test_the_relation_that_fails_is_named():
    with pytest.raises(ConfigError) as refused:
        check_divisible(config("bert"), 8, "parallel.tensor")
    assert str(refused.value) == (
        "parallel.tensor = 8: it does not divide the 12 attention heads (12 % 8 = 4) of this bert "
        "model; choose one of 1, 2, 3, 4, 6, 12"
    )
    with pytest.raises(ConfigError, match=r"divide the 100 feed-forward units \(100 % 3 = 1\)"):
        check_divisible(config("bert", intermediate_size=100), 3, "parallel.tensor")


def test_key_heads_may_be_fewer_than_ranks_but_not_between():
    heads = {"num_attention_heads": 12, "num_key_value_heads": 4}
    grouped = config("llama", hidden_size=48, intermediate_size=24, **heads)
    check_divisible(grouped, 12, "parallel.tensor")
    with pytest.raises(ConfigError, match=r"4 key and value heads \(4 % 6 = 4\).*1, 2, 4, 12$"):
        check_divisible(grouped, 6, "parallel.tensor")


def test_without_a_plan_only_one_rank_will_do():
    check_divisible(config("deberta-v2"), 1, "parallel.tensor")
    with pytest.raises(ConfigError, match=r"deberta-v2 models cannot be divided .*has no plan"):
        check_divisible(config("deberta-v2"), 2, "parallel.tensor")
    with pytest.raises(ConfigError, match=r"mixtral models .* plan needs moe_tp_experts"):
        check_divisible(config("mixtral"), 2, "parallel.tensor")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["--nproc", 4, "--set", "parallel.tensor=3"],
            "parallel.tensor = 3 does not divide the number of processes (4 % 3 = 1); choose one "
            "of 1, 2, 4, or start more (--nproc). Given is parallel.tensor (--set)",
        ),
        (
            ["--nproc", 8, "--set", "teacher.tensor=8"],
            "teacher.tensor = 8: it does not divide the 4 attention heads (4 % 8 = 4) of this bert "
            "model; choose one of 1, 2, 4. Given is teacher.tensor (--set)",
        ),
        (
            ["--nproc", 2, "--set", "parallel.tensor=2", "--set", "student.hidden_size=8"],
            "parallel.tensor = 2: it does not divide the 1 attention heads (1 % 2 = 1) of this "
            "bert model; choose one of 1. Given is parallel.tensor (--set)",
        ),
    ],
)
def test_a_run_is_refused_before_weights_are_read(invoke, world, settings, said):
    data = ["--data", world / "train.jsonl", "--teacher", world / "teacher"]
    done = invoke("explain", "kd", *data, *settings)
    assert done.code == 2
    assert " ".join(done.err.split()) == f"Error: {said}"
