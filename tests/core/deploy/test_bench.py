"""`gkd bench`: models side by side."""

import json

import pytest

from gkd_core.deploy import bench as benching
from gkd_core.deploy.candidate import peak_memory


def test_models_are_measured_in_turn_with_the_quality_that_is_known(
    invoke, finished, tmp_path, world, monkeypatch
):
    monkeypatch.setattr(benching, "peak_memory", lambda *_arguments: 12.0)
    assert invoke("export", finished, "--to", "out").code == 0
    models = [world / "teacher", finished / "student", "out"]
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
        (name, 2, length) for length in (8, 16) for name in ("teacher", "student", "out")
    ]
    for one in found["measured"]:
        assert 0 < one["p50"] <= one["p95"]
        assert one["throughput"] == pytest.approx(2000 / one["p50"])
    results = json.loads((finished / "results.json").read_text())
    expected = [row["metrics"]["accuracy"] for row in results["rows"]]
    assert found["qualities"]["student"]["value"] == expected[-1]
    assert found["qualities"]["out"]["value"] == expected[-1]


def test_too_many_tokens_are_an_error_that_names_the_model(invoke, finished):
    done = invoke("bench", finished / "student", "--length", 64, "--rounds", 1, "--batch", 1)
    assert done.code == 2
    assert "cannot read 1 rows of 64 tokens" in done.err


@pytest.mark.exhaustive
def test_memory_is_that_of_the_model(finished):
    found = peak_memory(str(finished / "student"), 1, 8, 16)
    assert 0 < found < 500
