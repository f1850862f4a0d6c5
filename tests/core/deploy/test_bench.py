"""`gkd bench`: models side by side."""

import json
import shutil
from dataclasses import replace

import pytest

from gkd_core.analysis import report
from gkd_core.analysis.report import BENCH
from gkd_core.deploy import bench as benching
from gkd_core.deploy.bench import Bench
from gkd_core.deploy.candidate import peak_memory
from gkd_core.deploy.quality import Quality
from gkd_core.deploy.timing import ModelTiming
from gkd_core.evaluation.statistics import Interval


def test_models_are_measured_in_turn_with_the_quality_that_is_known(
    invoke, finished, tmp_path, world, monkeypatch
):
    monkeypatch.setattr(benching, "peak_memory", lambda *_arguments: 12.0)
    shutil.copytree(finished, tmp_path / "run")
    assert invoke("export", "run", "--to", "out").code == 0
    models = [world / "teacher", "run/student", "out"]
    flags = ["--batch", 2, "--length", 8, "--length", 16, "--rounds", 3, "--output", "figures"]
    done = invoke("bench", *models, *flags)
    assert done.code == 0, done.err
    assert "12.0 MiB" in done.out
    names = {"bench.json", "latency.png", "pareto.png"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    written = (tmp_path / "figures" / "bench.json").read_text()
    assert str(world) not in written
    found = json.loads(written)
    assert [(one["name"], one["rows"], one["length"]) for one in found["measured"]] == [
        (name, 2, length) for length in (8, 16) for name in ("teacher", "run/student", "out")
    ]
    for one in found["measured"]:
        assert 0 < one["p50"] <= one["p95"]
        assert one["throughput"] == pytest.approx(2000 / one["p50"])
    results = json.loads((finished / "results.json").read_text())
    expected = [row["metrics"]["accuracy"] for row in results["rows"]]
    for name in ("run/student", "out"):
        quality = found["qualities"][name]
        assert quality["value"] == expected[-1]
        assert (quality["rows"], quality["split"]) == (40, "test")
        assert quality["interval"] == results["rows"][-1]["interval"]
    assert "40 test" in done.out
    said = " ".join(done.out.split())
    assert "p50: median time of a batch; p95: the time that 95% of the batches stay below" in said
    assert "time: relative to teacher in the same round" in said


@pytest.mark.parametrize(
    ("inside", "drawn"),
    [
        (Interval(0.7, 0.95), (0.7, 0.95)),
        (Interval(0.82, 0.95), (0.8, 0.95)),  # a bootstrap interval may leave its value out
        (None, None),
    ],
)
def test_the_picture_has_the_intervals_of_the_models(inside, drawn):
    timed = [
        ModelTiming(name, 1, 8, p50, 9.0, 500.0, 1.0) for name, p50 in (("a", 2.0), ("b", 3.0))
    ]
    known = {"a": Quality("accuracy", 0.8, inside, 40, "test", "x")}
    known["b"] = replace(known["a"], value=0.6, interval=Interval(0.5, 0.7))
    bench = Bench(timed, dict.fromkeys(known, 1), dict.fromkeys(known), known, {})
    (axes,) = bench._pareto().axes
    first, second = axes.containers
    assert first.lines[0].get_xydata().tolist() == [[2.0, 0.8]]
    assert _ends(second) == pytest.approx((0.5, 0.7))
    assert _ends(first) == (None if drawn is None else pytest.approx(drawn))


def _ends(container):
    """Return the ends of the bar of a point; None if it has none."""
    bars = container.lines[2]
    if not bars:
        return None
    (segment,) = bars[0].get_segments()
    return tuple(segment[:, 1])


def test_quality_is_what_was_measured_and_other_rows_are_not_compared(
    invoke, finished, tmp_path, monkeypatch
):
    monkeypatch.setattr(benching, "peak_memory", lambda *_arguments: None)
    shutil.copytree(finished, tmp_path / "run")
    assert invoke("export", "run", "--to", "out", "--rows", 8).code == 0
    flags = ["--batch", 1, "--length", 8, "--rounds", 1, "--output", "figures"]
    done = invoke("bench", "run/student", "out", *flags)
    assert done.code == 0, done.err
    assert "the models were judged on different rows" in done.out
    assert not (tmp_path / "figures" / "pareto.png").exists()
    found = json.loads((tmp_path / "figures" / "bench.json").read_text())["qualities"]["out"]
    verified = json.loads((tmp_path / "out" / "lineage.json").read_text())["verification"]
    assert (found["value"], found["rows"]) == (verified["after"], 8)
    assert found["interval"] == verified["estimate"]["interval"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "the models were judged on different rows" in page
    assert "Quality over the median time of a batch" not in page


def test_default_lengths_are_those_that_every_model_reads(invoke, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(benching, "peak_memory", lambda *_arguments: None)
    shutil.copytree(finished / "student", tmp_path / "student")
    done = invoke("bench", "student", "--batch", 1, "--rounds", 1)
    assert done.code == 0, done.err
    assert "1 x 32 tokens" in done.out
    assert "1 x 128 tokens" not in done.out
    assert "rows of 128 tokens are left out" in done.err
    assert "student reads at most 32" in done.err


def test_lengths_beyond_what_a_model_reads_are_refused_by_name(invoke, finished, tmp_path):
    lengths = ["--length", 16, "--length", 33]
    done = invoke("bench", finished / "student", *lengths, "--rounds", 1, "--output", "figures")
    assert done.code == 2
    said = " ".join(done.err.split())
    assert "student reads at most 32 tokens, so rows of 33 cannot be measured" in said
    assert "choose lengths up to 32 with --length" in said
    assert not (tmp_path / "figures").exists()


def test_the_report_of_a_run_shows_quality_against_latency(invoke, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(benching, "peak_memory", lambda *_arguments: None)
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "report.html"
    before = path.read_text()
    assert "Quality against latency" not in before
    assert invoke("export", "run", "--to", "out").code == 0
    flags = ["--batch", 2, "--length", 8, "--rounds", 2]
    for _ in range(2):  # the second time in place of the first
        done = invoke("bench", "run/student", "out", *flags)
        assert done.code == 0, done.err
        assert "written to run/report.html" in done.out
    page = path.read_text()
    assert page.count("Quality against latency") == 1
    assert page.count("Quality over the median time of a batch") == 2  # caption and label
    assert "ms, 2 x 8" in page
    own, _, rest = page.partition(BENCH[0])
    assert own + BENCH[0] + BENCH[1] + rest.partition(BENCH[1])[2] == before


def test_a_report_that_is_written_again_keeps_what_was_measured(tmp_path):
    (tmp_path / "report.html").write_text(f"a {''.join(BENCH)} b")
    assert report.add_bench(tmp_path, "<p>fast</p>") == [tmp_path / "report.html"]
    assert (tmp_path / "report.html").read_text() == f"a {BENCH[0]}<p>fast</p>{BENCH[1]} b"
    assert report._bench(tmp_path) == f"{BENCH[0]}<p>fast</p>{BENCH[1]}"


def test_a_report_without_a_place_for_it_stays(tmp_path):
    assert report.add_bench(tmp_path, "<p>fast</p>") == []
    (tmp_path / "report.html").write_text("of an earlier version")
    assert report.add_bench(tmp_path, "<p>fast</p>") == []
    assert {path.name for path in tmp_path.iterdir()} == {"report.html"}


@pytest.mark.exhaustive
def test_memory_is_that_of_the_model(finished):
    found = peak_memory(str(finished / "student"), 1, 8, 16)
    assert 0 < found < 500
