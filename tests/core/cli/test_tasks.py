"""`gkd tasks`: which tasks there are, and what they expect."""

from __future__ import annotations

from gkd_core.plugins import registry


def test_tasks_are_listed_with_kind_metric_data_and_origin(invoke):
    done = invoke("tasks")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert all(f" {name} " in said for name in registry().tasks)
    assert "gkd-core" in said
    assert "causal-cloze; score (the mean of macro_f1 and accuracy); train.jsonl, " in said
    assert "any that the rows fit; that of the kind; files (" in said


def test_a_task_says_what_it_expects(invoke):
    done = invoke("tasks", "superglue/record")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "Zhang et al. 2018" in said
    assert "kind multiple-choice, masked-cloze, causal-cloze" in said
    assert "data train.jsonl, val.jsonl, or aps/super_glue:record from the hub" in said
    assert "tokens at most 512" in said
    assert "cloze {passage} {query}" in said


def test_an_unknown_task_is_refused_with_a_suggestion(invoke):
    done = invoke("tasks", "superglue/copar")
    assert done.code == 2
    assert "Did you mean 'superglue/copa'?" in done.err
