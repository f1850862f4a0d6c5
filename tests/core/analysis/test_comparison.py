import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from gkd_core.analysis.compare import _kept
from gkd_core.analysis.comparison import Comparison, Row
from gkd_core.analysis.sizes import readable
from gkd_core.kinds.metrics import Metric
from gkd_core.kinds.task_kind import Evaluation


def make(*names, metric="accuracy", kept=0.987, agreement=0.876, parameters=109_483_778):
    rows = [
        Row(name, "x", {metric: 0.9123}, parameters, 437_935_112, 123.45, kept, agreement)
        for name in names
    ]
    return Comparison(metric, "test", 1000, rows)


def printed(comparison, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(comparison.table())
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("metric", ["accuracy", "pearson"])
def test_table_has_a_line_per_model_in_80_columns(metric):
    names = ["teacher", "student, labels only", "student, pkd+soft"]
    lines = printed(make(*names, metric=metric))
    assert lines[0] == f"{metric} on 1,000 test rows"
    assert lines[1].split() == ["model", metric, "kept", "agrees", "weights", "disk", "ms"]
    assert [line.split("  ")[0] for line in lines[3:6]] == names
    figures = ["0.9123", "98.7%", "87.6%", "109", "M", "417.6", "MiB", "123.45"]
    assert all(line.split()[-8:] == figures for line in lines[3:6])
    assert " ".join(lines[6:]).startswith("kept: share of the teacher's quality; agrees: ")


def test_saved_comparison_has_null_for_what_is_not_finite(tmp_path):
    comparison = make("teacher", metric="pearson", kept=math.nan)
    comparison.save(tmp_path / "results.json")
    assert '"kept": null' in (tmp_path / "results.json").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["agreement"] == 0.876


def test_nothing_is_kept_of_a_teacher_without_quality():
    metric, student = Metric("accuracy", True), Evaluation({"accuracy": 0.5}, None)
    assert _kept(metric, student, Evaluation({"accuracy": 0.8}, None)) == pytest.approx(0.625)
    assert _kept(metric, student, Evaluation({"accuracy": 0.0}, None)) is None


def test_accuracy_is_put_beside_that_of_a_guess():
    lines = printed(replace(make("student, sid"), guessed=0.1365))
    assert " ".join(lines[4:]).startswith("accuracy: 0.1365 by the most frequent class; kept: ")


def test_language_model_table_has_a_line_per_model_without_agreement():
    lines = printed(make("student, labels only", metric="perplexity", agreement=None))
    assert lines[1].split() == ["model", "perplexity", "kept", "weights", "disk", "ms"]
    assert lines[3].startswith("student, labels only ")
    assert "agrees" not in " ".join(lines)


def test_model_alone_has_no_figures_of_a_teacher():
    lines = printed(make("runs/pkd+soft-1/student", kept=None, agreement=None))
    assert lines[1].split() == ["model", "accuracy", "weights", "disk", "ms"]


def test_long_name_is_folded_and_its_figures_stay_whole():
    lines = printed(make("student, 0.5*hard+0.5*soft+linear(0 -> 1, over=50%)*pkd"))
    assert lines[3].split()[-8:][0] == "0.9123"
    names = [line[:21].rstrip() for line in lines[3:6]]
    assert names == ["student, 0.5*hard+", "0.5*soft+linear(0 ->", "1, over=50%)*pkd"]


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [(999, "999"), (37_378, "37.4 k"), (999_950, "1.00 M"), (4_385_920, "4.39 M"), (7e9, "7.00 B")],
)
def test_weights_have_three_digits(parameters, shown):
    (cells,) = make("model", parameters=int(parameters)).cells()
    assert cells[4] == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [(128, "128 B"), (2048, "2.0 KiB"), (3 * 2**20, "3.0 MiB"), (5 * 2**30, "5.0 GiB")],
)
def test_size_has_its_unit(size, shown):
    assert readable(size) == shown
