"""ROUGE-L and exact match of written text, against values worked out by hand."""

from __future__ import annotations

import json
import re

import pyarrow.parquet as pq
import pytest

from gkd_core.evaluation.written import exact_match, rouge_l


@pytest.mark.parametrize(
    ("written", "wanted", "value"),
    [
        ("police kill the gunman", "police killed the gunman", 3 / 4),  # Lin, 2004
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("the gunman police killed", "police killed the gunman", 2 / 4),
        ("A, b: C!", "a b c", 1.0),
        ("a b c d e", "a c e", 2 * 3 / 8),
        ("", "a", 0.0),
        ("", "", 0.0),
        ("x", "y", 0.0),
    ],
)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(written, wanted, value):
    assert rouge_l(written, wanted) == pytest.approx(value)
    assert rouge_l(wanted, written) == pytest.approx(value)


def test_exact_match_overlooks_white_space_only():
    assert exact_match(" a  b\n", "a b") == 1
    assert exact_match("A b", "a b") == 0


def test_answers_are_compared_with_their_targets_and_texts_with_nothing(invoke, world, tmp_path):
    rows = [{"prompt": "the movie was", "response": f"{word} and good"} for word in ("bad", "sad")]
    (tmp_path / "told.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [world / "lm-decoder", "--set", "task.kind=causal-lm", "--set", "task.max_length=32"]
    done = invoke("eval", *given, "--data", "told.jsonl", "--samples", 2, "--output", "found")
    assert re.search(r"ROUGE-L 0\.\d+, exact match \d+\.0% of 2 written answers: ", done.out)
    (table,) = (
        pq.read_table(path) for path in tmp_path.glob("found/**/*.parquet") if path.stem != "rows"
    )
    for row, (text, value) in enumerate(
        zip(table["generated"].to_pylist(), table["rouge_l"].to_pylist(), strict=True)
    ):
        assert value == rouge_l(text, rows[row]["response"])
    done = invoke("eval", *given, "--data", world / "corpus.txt", "--samples", 1, "--json")
    assert "written_answers" not in json.loads(done.out)
