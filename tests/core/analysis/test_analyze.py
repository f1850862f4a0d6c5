"""`gkd analyze`: correlations of hand-made series, layers, rows, and what the command writes."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from gkd_core.analysis import probe_figures
from gkd_core.analysis.correlations import correlations_over_runs, correlations_within
from gkd_core.analysis.disagreement import disagreements
from gkd_core.analysis.finished_run import FinishedRun
from gkd_core.analysis.layer_similarity import LayerSimilarity
from gkd_core.cli import gkd
from gkd_core.errors import ConfigError, DataError
from gkd_core.evaluation.predictions import About, Predictions
from gkd_core.plugins import registry
from gkd_core.probes.probe_file import PROBES, ProbedValue, ProbeFile

HALVES = "hidden[1]"
"""The feature of hand-made probes."""


def _value(step, distance, value, rows="training"):
    return ProbedValue(step, 0, rows, "teacher", HALVES, "hidden[2]", distance, value)


def _write_run(folder, quality, probes, evaluations=(), metric="accuracy", method="soft"):
    """Write what `gkd analyze` reads of a run."""
    stage = folder / "stages" / "distil"
    stage.mkdir(parents=True)
    (folder / "config.toml").write_text(f'method = "{method}"\n')
    results = {
        "metric": metric,
        "split": "test",
        "samples": 40,
        "rows": [{"metrics": {metric: quality}}],
    }
    (folder / "results.json").write_text(json.dumps(results))
    lines = [
        {"stage": "distil", "step": step, f"validation/{metric}": value}
        for step, value in evaluations
    ]
    lines.append({"stage": "distil", "step": 1, "loss/total": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if probes:
        ProbeFile(stage / PROBES).append(probes)
    return FinishedRun.read(folder, registry())


def _headings(page):
    return set(re.findall(r'data-heading="([^"]*)"', page))


def _runs(folder, qualities, **distances):
    """Write runs with a quality each, whose final distances are given by name."""
    return [
        _write_run(
            folder / f"run{number}",
            quality,
            [_value(9, name, series[number], "validation") for name, series in distances.items()],
        )
        for number, quality in enumerate(qualities)
    ]


QUALITIES = [0.80, 0.79, 0.78, 0.77, 0.76, 0.75, 0.60, 0.61]


def test_correlations_over_runs_are_those_worked_out_by_hand(tmp_path):
    """The ranks 1..8 against 8 7 6 5 4 3 1 2: 1 - 6 * 166 / (8 * 63) = -0.97619."""
    runs = _runs(
        tmp_path, QUALITIES, mse=[1, 2, 3, 4, 5, 6, 7, 8], cosine=[1 - q for q in QUALITIES]
    )
    found = {each.probe.distance: each for each in correlations_over_runs(runs)}
    assert found["mse"].spearman.value == pytest.approx(-0.97619, abs=1e-5)
    assert found["mse"].spearman.n == 8
    assert found["cosine"].pearson.value == pytest.approx(-1)
    assert found["cosine"].spearman.interval.high == pytest.approx(-1)
    assert list(found) == ["cosine", "mse"]  # the strongest first

    folders, output = [str(run.directory) for run in runs], tmp_path / "analysis"
    arguments = ["analyze", *folders, "--output", str(output)]
    shown = CliRunner().invoke(gkd, arguments, catch_exceptions=False).output
    assert "-0.98 [-1.00, " in shown
    assert {path.stem for path in output.glob("*.png")} == {"correlations", "distances", "losses"}


def test_no_correlation_is_shown_below_8_runs(tmp_path):
    _runs(tmp_path, QUALITIES[:7], mse=range(7))
    folders = [str(tmp_path / f"run{number}") for number in range(7)]
    shown = CliRunner().invoke(gkd, ["analyze", *folders], catch_exceptions=False).output
    assert "no correlation is shown: 7 runs with probes, and below 8 it says nothing" in " ".join(
        shown.split()
    )
    printed = CliRunner().invoke(gkd, ["analyze", *folders, "--json"], catch_exceptions=False)
    (found,) = json.loads(printed.output)["correlations"]
    assert found["spearman"]["value"] is None
    assert found["spearman"]["reason"] == "7 points; 8 are needed"


def test_within_a_run_changes_are_correlated_and_not_what_falls_together(tmp_path):
    """The metric rises by 1 2 3 ...; `steady` falls evenly, `bound` by as much as it rises."""
    metric = [step * (step + 1) / 2 for step in range(10)]
    evaluations = [(2 * (number + 1), value) for number, value in enumerate(metric)]
    probes = []
    for (step, value), number in zip(evaluations, range(10), strict=True):
        for own in (step - 1, step):  # two measurements before each evaluation: their mean counts
            wobble = 0.25 if own == step else -0.25
            probes += [_value(own, "bound", -value + wobble), _value(own, "steady", -number)]
    run = _write_run(tmp_path / "run", 0.9, probes, evaluations)
    found = {each.probe.distance: each for each in correlations_within(run)}
    assert found["bound"].pearson.value == pytest.approx(-1)
    assert found["bound"].pearson.n == 9
    assert found["steady"].pearson.reason == "one side does not vary"


def test_values_can_be_read_on_the_cells_of_a_heat_map():
    values = [[number / 20 - low for number in range(21)] for low in (0, 1)]
    figure = probe_figures.layers(LayerSimilarity("teacher", values, 9, "test"))
    axes = figure.axes[0]
    (mesh,) = axes.collections
    cells = mesh.to_rgba([value for row in values for value in row])
    inks = [text.get_color() for text in axes.texts]
    contrasts = [_contrast(ink, cell) for ink, cell in zip(inks, cells, strict=True)]
    plt.close(figure)
    assert min(contrasts) >= 4.5, "as the guidelines for accessibility ask of text (WCAG 2)"


def _contrast(ink, paper):
    weights = np.array([0.2126, 0.7152, 0.0722])
    channels = np.stack([to_rgb(ink), paper[:3]])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ weights)
    return (high + 0.05) / (low + 0.05)


def test_runs_with_different_metrics_are_refused(tmp_path):
    runs = [_write_run(tmp_path / name, 0.5, [], metric=name) for name in ("accuracy", "matthews")]
    with pytest.raises(
        DataError, match=r"is judged by accuracy on 40 test rows, but .* by matthews"
    ):
        correlations_over_runs(runs)


def test_a_run_counts_once_and_its_rows_are_those_of_the_others(tmp_path):
    run = _write_run(tmp_path / "run", 0.5, [])
    with pytest.raises(DataError, match="run is named more than once"):
        correlations_over_runs([run, FinishedRun.read(tmp_path / "run/../run", registry())])
    others = [_write_run(tmp_path / name, 0.5, []) for name in ("one", "two")]
    for number, other in enumerate(others):
        rows = pa.table({"row": [0], "hash": [f"row {number}"]})
        about = About("test", "classification", ("x", "y"), "accuracy")
        Predictions(about, rows, {}, {}).write(other.directory / "predictions")
    with pytest.raises(DataError, match=r"one and .*two are judged on different rows"):
        correlations_over_runs(others)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results.json", b'{"metric": "acc', "results.json is damaged: Unterminated string"),
        ("results.json", b"[]", "results.json is damaged: it lacks one of metric, rows"),
        ("metrics.jsonl", b'{"stage": "distil"}\n{"sta', "metrics.jsonl is damaged"),
        (
            "stages/distil/probes.parquet",
            b"PAR1 and no more",
            "probes.parquet is damaged, or is not a file",
        ),
    ],
)
def test_damaged_files_of_a_run_are_named(tmp_path, invoke, file, content, message):
    run = _write_run(tmp_path / "run", 0.5, [_value(9, "mse", 1.0)])
    (run.directory / file).write_bytes(content)
    found = invoke("analyze", run.directory)
    assert found.code == 2
    assert message in " ".join(found.err.split())


def test_directory_without_results_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config.toml. Name another, or finish it"):
        FinishedRun.read(tmp_path, registry())


def test_rows_are_sorted_by_the_divergence_of_the_students_scores():
    rows = pa.table(
        {
            "row": [0, 1, 2],
            "hash": ["a", "b", "c"],
            "text": ["same", "far", "near"],
            "pair": pa.nulls(3),
            "gold": ["x", "y", "x"],
            "group": pa.nulls(3),
        }
    )
    student = {"hash": ["a", "b", "c"], "prediction": ["x", "x", "y"]}
    teacher = {"hash": ["c", "b", "a"], "prediction": ["x", "y", "x"]}
    models = {
        "student": pa.table(student | {"scores": [[1.0, 0.0], [2.0, 0.0], [0.0, 0.5]]}),
        "teacher": pa.table(teacher | {"scores": [[0.5, 0.0], [0.0, 2.0], [3.0, 2.0]]}),
    }
    about = About("test", "classification", ("x", "y"), "accuracy")
    predictions = Predictions(about, rows, models, dict.fromkeys(models, ""))
    found = disagreements(predictions, registry().kind("classification"))
    assert [each.text for each in found] == ["far", "near", "same"]
    assert found[0].distance == pytest.approx(2 * 0.761594, abs=1e-5)  # 2 tanh(1)
    assert found[2].distance == pytest.approx(0, abs=1e-12)
    assert (found[1].teacher, found[1].student, found[1].gold) == ("x", "y", "x")


def test_rows_of_several_words_and_of_marks_differ_by_the_mean_over_them():
    rows = pa.table({name: ["a", "b"] for name in ("row", "hash", "text", "pair", "gold")})

    def found(kind, student, teacher):
        models = {
            name: pa.table({"hash": ["a", "b"], "prediction": ["", ""], "scores": scores})
            for name, scores in (("student", student), ("teacher", teacher))
        }
        about = About("test", kind, ("x", "y"), "f1")
        predictions = Predictions(about, rows, models, dict.fromkeys(models, ""))
        return {r.text: r.distance for r in disagreements(predictions, registry().kind(kind))}

    two, one = [[2.0, 0.0], [0.0, 0.0]], [[0.0, 0.0]]
    apart = found("token-classification", [two, one], [[[0.0, 2.0], [0.0, 0.0]], [*one, *one]])
    assert apart == {"a": pytest.approx(0.761594, abs=1e-6), "b": 0}  # tanh(1) of two words
    apart = found("multi-label", [[2.0, 1.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]])
    # KL of a fair coin from one with the probability of a sigmoid of 2, of one of two classes
    assert apart == {"a": pytest.approx(0.433781 / 2, abs=1e-6), "b": 0}


def test_command_writes_page_figures_and_tables_of_a_real_run(world, tmp_path):
    run, output = tmp_path / "run", tmp_path / "analysis"
    settings = {
        "task.test": world / "test.jsonl",
        "training.steps": 9,
        "training.evaluate_every": 1,
        "probe.every": 1,
        "student.layers": 2,
        "task.max_length": 32,
    }
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    teacher, data = str(world / "teacher"), str(world / "train.jsonl")
    command = ["run", "--method=soft", "--teacher", teacher, "--data", data, "--probe=logits"]
    for arguments in (
        [*command, "--probe=hidden[*]", "--output", str(run), *given],
        ["analyze", str(run), "--output", str(output)],
    ):
        result = CliRunner().invoke(gkd, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    report = (run / "report.html").read_text()
    assert "mse to teacher in stage distil" in report
    found = json.loads((output / "analysis.json").read_text())
    assert found["points"] == "changes between evaluations within one run"
    assert {each["feature"] for each in found["correlations"]} >= {"logits", "hidden[0]"}
    layers = found["layer_similarity"]["values"]
    assert (len(layers), len(layers[0])) == (3, 5)
    assert layers[0][0] == pytest.approx(1, abs=0.01)  # the embedding, copied from the teacher
    distances = [row["distance"] for row in found["disagreements"]]
    assert len(distances) == 40
    assert distances == sorted(distances, reverse=True)
    with (output / "disagreements.csv").open() as file:
        assert len(list(csv.reader(file))) == 41
    page = (output / "analysis.html").read_text()
    figures = {path.stem for path in output.glob("*.png")}
    assert figures >= {"layer-similarity", "losses"}
    assert page.count("<figure") == len(figures)
    assert "<image" not in page, "its policy forbids images"
    assert "default-src 'none'" in page
    assert _headings(report) & _headings(page) >= {"teacher", "student", "distance"}
    shown = [value for row in layers for value in row if f">{value:.2f}<" in report]
    assert len(shown) == 15, "the report has the layers too"
    shutil.rmtree(run / "student")
    result = CliRunner().invoke(gkd, ["analyze", str(run)], catch_exceptions=False)
    said = " ".join(result.output.split())
    assert "no similarity of layers: " in said
    assert "Rows by disagreement" in said
