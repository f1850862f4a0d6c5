"""`gkd study report`: a study whose winner, ties and failures are known is reported as such."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from gkd_core.cli.study_report import report
from gkd_core.plugins import registry
from gkd_core.studies.choice import Choice
from gkd_core.studies.comparisons import Verdict, axis_table
from gkd_core.studies.study_folder import StudyFolder
from gkd_core.studies.study_report import StudyReport
from gkd_core.studies.study_results import StudyResults
from gkd_core.studies.study_tables import study_grids

QUALITIES = {"hard": 0.7, "kd": 0.7, "pkd": 0.95, "soft": 0.4, "pkd+soft": 0.96}
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def folder(write_study, tmp_path_factory):
    """A study of 6 methods, of which `ckd` fails with one seed."""
    study = write_study(
        tmp_path_factory.mktemp("study"),
        {
            "title": "Methods | made up",
            "axes": {"method": [*QUALITIES, "ckd"], "seed": list(SEEDS)},
            "baseline": {"method": "hard"},
        },
    )
    for seed in SEEDS:
        for method, quality in QUALITIES.items():
            study.add(quality, seed=seed, method=method)
        study.add(0.99, seed=seed, method="ckd", state="failed" if seed == 2 else "finished")
    return study.close()


@pytest.fixture(scope="module")
def results(folder):
    return StudyResults.read(StudyFolder.read(folder), registry())


@pytest.fixture(scope="module")
def told(folder):
    """What the command prints."""
    result = CliRunner().invoke(report, [str(folder)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def _levels(results, axis="method"):
    return {level.value: level for level in axis_table(results, axis).levels}


def test_tuned_rates_are_shown_with_the_factor(results):
    assert {each.outcome.rates for each in results.cells if each.outcome} == {(5e-5,)}

    def tuned(each):
        outcome = each.outcome and replace(each.outcome, rates=(9e-5, 3e-4))
        return replace(each, cell=replace(each.cell, lr_factor=3.0), outcome=outcome)

    procedures = replace(results, cells=[tuned(each) for each in results.cells])
    table = axis_table(procedures, "method")
    axis, *_ = study_grids(procedures, [table], {}, Choice((), (), ()))
    rates = {row[axis.columns.index("lr")] for row in axis.rows}
    assert rates == {"x 3 (9e-05, 0.0003)"}


def test_winner_tie_and_loser_are_told_apart(results):
    levels = _levels(results)
    verdicts = {
        value: level.comparison and level.comparison.verdict for value, level in levels.items()
    }
    assert verdicts == {
        "ckd": Verdict.BETTER,
        "pkd+soft": Verdict.BETTER,
        "pkd": Verdict.BETTER,
        "kd": Verdict.TIED,
        "hard": None,
        "soft": Verdict.WORSE,
    }
    winner = levels["pkd"]
    assert winner.spreads["embedded"].n == 3
    assert winner.comparison.difference.value == pytest.approx(
        winner.spreads["embedded"].mean - levels["hard"].spreads["embedded"].mean
    )
    assert winner.comparison.difference.interval.low > 0.1
    assert [test.p < 0.01 for test in winner.comparison.mcnemar.values()] == [True] * 3
    assert winner.comparison.p > winner.comparison.mcnemar["embedded", 1, ()].p


def test_failed_cells_are_failures_and_cannot_be_chosen(results, told):
    failed = _levels(results)["ckd"]
    assert (failed.spreads["embedded"].n, failed.spreads["embedded"].failed) == (2, 1)
    assert failed.comparison.left_out == [
        "method=ckd, task=embedded, seed=2: failed: OutOfMemory: no room"
    ]
    assert "method=ckd cannot be chosen: 1 of 3 have no result" in told
    assert "17 finished, 1 failed" in told


def test_findings_are_said_aloud(told):
    assert "method: kd is tied with hard, so far not told apart" in told
    assert "method: soft is worse than hard" in told
    assert "method=pkd+soft, chosen on validation rows as the best of all, is better than" in told
    assert "method=pkd+soft is not shown to beat method=kd and the best single" in told
    assert "3 seeds; 6 are needed, as its smallest p-value is 0.25" in told


def test_report_is_one_page_with_tables_and_figures_as_files(folder, told):
    place = folder / "report"
    names = {path.name for path in place.iterdir()}
    assert {
        "study.html",
        "report.md",
        "report.json",
        "axis-method.csv",
        "cells.csv",
        "failed.csv",
        "bars-method.png",
        "pareto.png",
        "heat-knowledge-matching.png",
    } <= names
    page = (place / "study.html").read_text()
    assert page.count("<svg") == 3
    assert "://" not in page.replace("http://www.w3.org/", "")
    rows = list(csv.DictReader((place / "axis-method.csv").read_text().splitlines()))
    assert [row["verdict"] for row in rows if row["method"] == "kd"] == ["tied"]
    assert [row["n"] for row in rows if row["method"] == "ckd"] == ["2, 1 failed"]
    assert "# Methods | made up" in (place / "report.md").read_text()
    found = json.loads((place / "report.json").read_text())
    assert found["chosen"][0]["axes"] == {"method": "pkd+soft"}


def test_seeds_and_rows_that_only_one_side_has_are_named(write_study, tmp_path):
    study = write_study(tmp_path, {"axes": {"method": ["hard", "pkd"], "seed": [1, 2, 3]}})
    for seed in (1, 2, 3):
        study.add(0.7, seed=seed, method="hard")
    study.add(0.95, seed=1, method="pkd")
    study.add(0.95, seed=2, method="pkd", rows=250)
    found = StudyResults.read(StudyFolder.read(study.close()), registry())
    comparison = _levels(found)["pkd"].comparison
    assert comparison.difference.seeds == 2
    assert comparison.left_out == [
        "method=pkd, task=embedded, seed=2: 250 rows in both, 50 only in the second",
        "method=hard, task=embedded, seed=3 has no counterpart",
    ]


def test_several_tasks_and_axes_are_averaged_all_else_being_equal(write_study, tmp_path):
    study = write_study(
        tmp_path,
        {"axes": {"method": ["kd", "pkd+soft"], "student.layers": [1, 2], "seed": [1, 2, 3]}},
    )
    for seed in (1, 2, 3):
        for task in ("easy", "difficult"):
            for layers in (1, 2):
                for method, gain in (("kd", 0.0), ("pkd+soft", 0.25)):
                    quality = 0.6 + gain + 0.1 * (task == "easy")
                    axes = {"method": method, "student.layers": layers}
                    study.add(quality, seed=seed, task=task, **axes)
    found = StudyReport.of(StudyResults.read(StudyFolder.read(study.close()), registry()))
    methods = next(table for table in found.tables if table.axis == "method")
    best = methods.levels[0]
    assert best.value == "pkd+soft"
    assert set(best.spreads) == {"easy", "difficult"}
    assert best.comparison.difference.value == pytest.approx(0.25, abs=0.06)
    assert best.comparison.verdict is Verdict.BETTER
    assert len(best.comparison.mcnemar) == 3 * 2 * 2, "one test of each pair, at each depth"
    tested = found.to_json()["axes"][0]["values"][0]["comparison"]["mcnemar"]
    assert {each["axes"]["student.layers"] for each in tested} == {1, 2}
    layers = next(table for table in found.tables if table.axis == "student.layers")
    assert layers.levels[0].comparison is None or layers.levels[1].comparison is None
    tied = [level.comparison.verdict for level in layers.levels if level.comparison is not None]
    assert tied == [Verdict.TIED]


def test_no_comparison_counts_twice_where_kd_is_the_best_method_and_the_baseline(
    write_study, tmp_path
):
    methods = {"kd": 0.7, "pkd": 0.6, "pkd+soft": 0.76}
    study = write_study(
        tmp_path, {"axes": {"method": [*methods], "seed": [1, 2, 3]}, "baseline": {"method": "kd"}}
    )
    for seed in (1, 2, 3):
        for method, quality in methods.items():
            study.add(quality, seed=seed, method=method)
    found = StudyReport.of(StudyResults.read(StudyFolder.read(study.close()), registry()))
    against = [duel.second for duel in found.choice.duels]
    assert against == ["the baseline", "the best single method, method=kd"]
    for duel in found.choice.duels:
        assert duel.comparison.p == pytest.approx(duel.comparison.difference.p)
    assert list(found.sentences())[-1].endswith(" the best single method, method=kd")


def test_value_that_loses_least_in_its_worst_task_is_said(write_study, tmp_path):
    gains = {"kd": (0.0, 0.0), "pkd": (0.3, -0.3), "soft": (0.05, 0.0), "ckd": (-0.1, -0.1)}
    study = write_study(tmp_path, {"axes": {"method": list(gains), "seed": [1, 2, 3]}})
    for seed in (1, 2, 3):
        for method, by_task in gains.items():
            for task, gain in zip(("few", "many"), by_task, strict=True):
                study.add(0.6 + gain, seed=seed, task=task, method=method)
    study.add(0.9, task="few", method="minilm")  # on one task only, so it comes last
    found = StudyReport.of(StudyResults.read(StudyFolder.read(study.close()), registry()))
    cases = found.worst["method"]
    assert [case.value for case in cases] == ["soft", "ckd", "pkd", "minilm"]
    assert [case.tasks for case in cases] == [2, 2, 2, 1]
    assert cases[2].task == "many"
    assert cases[2].difference == pytest.approx(-0.3, abs=0.08)
    assert cases[2].interval.low < cases[2].difference < cases[2].interval.high
    (said,) = (each for each in found.sentences() if "worst" in each)
    assert said.startswith("method: soft loses least to kd in the worst of 2 tasks: ")
    grid = next(each for each in found.grids() if each.name == "worst-method")
    assert [row[0] for row in grid.rows] == ["soft", "ckd", "pkd", "minilm"]


@pytest.mark.parametrize(
    ("methods", "columns"),
    [
        (["kd", "pkd"], ["task", "kd", "pkd"]),
        (
            ["kd", "pkd", "soft", "ckd", "minilm"],
            ["method", *(f"t{n} (accuracy)" for n in range(4))],
        ),
    ],
)
def test_many_tasks_have_a_table_of_their_own(methods, columns, write_study, tmp_path):
    study = write_study(tmp_path, {"axes": {"method": methods}})
    for place, method in enumerate(methods):
        for number in range(4):
            study.add(0.5 + place / 10 + number / 100, task=f"t{number}", method=method)
    found = StudyReport.of(StudyResults.read(StudyFolder.read(study.close()), registry()))
    grids = {grid.name: grid for grid in found.grids()}
    assert not any("accuracy" in column for column in grids["axis-method"].columns)
    own = grids["tasks-method"]
    assert sorted(own.columns) == sorted(columns)
    assert own.columns[0] == columns[0]
    cells = {
        (row[0], name): cell
        for row in own.rows
        for name, cell in zip(own.columns, row, strict=True)
    }
    pair = ("t3 (accuracy)", "pkd")
    assert float(cells.get(pair) or cells[pair[::-1]]) == pytest.approx(0.63, abs=0.08)


def test_one_seed_is_named_as_such(write_study, tmp_path):
    study = write_study(tmp_path, {"axes": {"method": ["kd", "pkd"]}})
    study.add(0.6, method="kd")
    study.add(0.9, method="pkd")
    found = StudyReport.of(StudyResults.read(StudyFolder.read(study.close()), registry()))
    (grid, *_) = found.grids()
    assert [row[grid.columns.index("verdict")] for row in grid.rows] == [
        "better (one seed)",
        "baseline",
    ]
    assert any("intervals of one seed are about other rows only" in note for note in found.notes())


def test_a_dropped_cell_whose_settings_name_no_task_is_no_task_of_its_own():
    cells = [SimpleNamespace(cell=SimpleNamespace(task=name)) for name in ("files", "")]
    assert StudyResults(None, cells).tasks == ["files"]
