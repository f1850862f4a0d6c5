"""Checks that methods share."""

from __future__ import annotations

import pytest

from gkd_core.api import MethodError, ModelInfo, Models, same_heads, same_width


def info(name, width=32, heads=4, kv_heads=4):
    return ModelInfo(name, "bert", 2, width, heads, kv_heads, 8, 64, 100, 2, 64)


def test_equal_models_and_runs_without_a_teacher_pass():
    for teacher in (info("base"), None):
        same_width(Models(info("student"), teacher), "mine")
        same_heads(Models(info("student"), teacher), "mine", values=True)


def test_other_widths_are_refused_with_the_setting():
    with pytest.raises(MethodError) as refused:
        same_width(Models(info("student", width=16), info("base")), "mine")
    assert str(refused.value) == (
        "mine compares hidden states, but the student has hidden size 16 and the teacher 'base' "
        "32. Set student.hidden_size=32"
    )


def test_other_numbers_of_heads_are_refused_with_the_advice():
    models = Models(info("student", kv_heads=2), info("base"))
    same_heads(models, "mine")
    with pytest.raises(MethodError, match=r"2 value heads and the teacher 'base' 4\. Use soft$"):
        same_heads(models, "mine", "Use soft", values=True)
    with pytest.raises(MethodError, match=r"8 attention heads .* 4\. Set student\.heads=4$"):
        same_heads(Models(info("student", heads=8), info("base")), "mine")
