"""The bridge to lm-evaluation-harness; the harness itself runs if it is installed."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from gkd_core.analysis.lm_harness import _findings
from gkd_core.evaluation.predictions import Predictions

TASK = """
task: tiny_sentiment
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}} is"
doc_to_target: label
doc_to_choice: ["bad", "good"]
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def _result(right):
    """Return what the harness returns for four rows, of which it got some right."""
    samples = [
        {
            "doc_id": row,
            "target": 1,
            "arguments": [["a film is", " bad"], ["a film is", " good"]],
            "filtered_resps": [(-2.0, False), (-1.0, False)],
            "filter": "none",
            "metrics": ["acc"],
            "doc_hash": f"hash {row}",
            "acc": float(value),
        }
        for row, value in enumerate(right)
    ]
    accuracy = sum(right) / len(right)
    values = {"alias": "t", "sample_len": 4, "acc,none": accuracy, "acc_stderr,none": 0.25}
    return {"results": {"t": values}, "samples": {"t": samples[::-1]}}


def test_samples_become_predictions_and_pairs(tmp_path):
    results = {"large": _result([1, 1, 1, 0]), "student, soft": _result([0, 1, 0, 0])}
    found = _findings(results, {"teacher": "large", "student": "student, soft"})
    (metric,) = found.metrics
    assert metric.values == {"large": 0.75, "student, soft": 0.25}
    assert metric.errors == {"large": 0.25, "student, soft": 0.25}
    assert metric.differences["student, soft"].value == -0.5
    assert metric.differences["student, soft"].n == 4
    found.write(tmp_path)
    kept = Predictions.read(tmp_path / "t")
    assert kept.rows["hash"].to_pylist() == [f"hash {row}" for row in range(4)]
    assert kept.rows["pair"].to_pylist()[0] == [" bad", " good"]
    assert kept.models["student"]["acc"].to_pylist() == [0, 1, 0, 0]
    assert kept.models["student"]["scores"].to_pylist()[0] == [-2, -1]
    assert kept.names == {"student": "student, soft", "teacher": "large"}


def test_the_harness_is_named_where_it_is_missing(invoke, world, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = invoke("eval", world / "lm-decoder", "--tasks", "hellaswag")
    assert done.code == 2
    assert "pip install 'gkd-core[lm-eval]'" in done.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit", 3], "--limit belongs to --tasks"),
        (["--against", "lm-decoder"], "--against must name another model"),
        (["--tasks", "hellaswag", "--data", "x"], "--tasks has its own rows and settings"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(invoke, flags, message):
    done = invoke("eval", "lm-decoder", *flags)
    assert done.code == 2
    assert message in done.err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_task_in_a_local_file_is_asked_of_two_models(invoke, world, tmp_path):
    pytest.importorskip("lm_eval.models.huggingface")
    rows = [("a good film", 1), ("an awful plot", 0), ("it was lovely", 1), ("so sad", 0)]
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "task.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    flags = ["--tasks", "task.yaml", "--limit", 3, "--num-fewshot", 0, "--output", "found"]
    shutil.copytree(world / "lm-decoder", tmp_path / "other")
    done = invoke("eval", world / "lm-decoder", "--against", "other", *flags, "--json")
    assert done.code == 0, done.err
    (metric,) = json.loads(done.out)["metrics"]
    assert (metric["task"], metric["metric"]) == ("tiny_sentiment", "acc,none")
    kept = Predictions.read(tmp_path / "found" / "tiny_sentiment")
    assert len(kept.rows) == 3
    assert kept.rows["text"].to_pylist()[0] == "a good film is"
    assert metric["differences"][str(world / "lm-decoder")]["value"] == 0
    right = kept.models["lm-decoder"]["acc"].to_pylist()
    assert metric["values"][str(world / "lm-decoder")] == pytest.approx(sum(right) / 3)
    missing = invoke("eval", world / "lm-decoder", "--tasks", "no_such_task")
    assert missing.code == 2
    assert "has no task 'no_such_task'" in missing.err
