"""The figure of all recipes is drawn from what runs recorded."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "loss_curves.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("loss_curves", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(run, **stages):
    run.mkdir(parents=True)
    entries = [
        {"stage": stage, "step": step, "loss/total": loss}
        for stage, losses in stages.items()
        for step, loss in enumerate(losses, start=1)
    ]
    entries.insert(1, {"stage": entries[0]["stage"], "step": 1, "validation/loss": 3.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_curves_are_those_of_the_recipes_own_stages(script, tmp_path):
    write(
        tmp_path / "run",
        **{"teacher": [9.0], "teacher-2": [9.0], "general": [4.0, 2.0], "task": [1.0]},
    )
    assert script.read_curves(tmp_path / "run") == {
        "general": [(1, 4.0), (2, 2.0)],
        "task": [(1, 1.0)],
    }


def test_a_stage_goes_from_its_largest_loss_over_its_whole_width(script):
    losses = [8.0, 6.0, 4.0, 2.0, 0.0, 0.0, 0.0, 0.0]
    progress, loss, mean = script.normalized(list(enumerate(losses, start=1)))
    assert progress.tolist() == [step / 8 for step in range(1, 9)]
    np.testing.assert_allclose(loss, [x / 8 for x in losses])
    # Means of the last 5 steps, of fewer at the beginning.
    np.testing.assert_allclose(mean, [x / 8 for x in (8, 7, 6, 5, 4, 2.4, 1.2, 0.4)])
    assert [part.tolist() for part in script.normalized([(1, 0.0)])] == [[1], [0], [0]]


@pytest.mark.exhaustive
@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_every_recipe_has_a_panel(script, tmp_path, suffix):
    curves = {f"recipe-{n}": {"task": [(1, 2.0), (2, 1.0)]} for n in range(7)}
    output = tmp_path / "images" / f"figure{suffix}"
    script.draw(curves, output)
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    if suffix == ".svg":
        text = output.read_text()
        assert all(f">{name}</text>" in text for name in curves)
    else:
        assert output.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_recipes_are_run_once_and_those_that_fail_are_named(
    script, world, tmp_path, monkeypatch, capsys
):
    given = ["--teacher", str(world / "teacher"), "--data", str(world / "train.jsonl")]
    output = tmp_path / "figure.svg"
    own = ["--steps", "2", "--runs", str(tmp_path / "runs"), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["loss_curves.py", "pkd", "tinybert", *own, "--", *given])
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    script.main()
    said = capsys.readouterr()
    assert "running pkd" in said.out
    assert "tinybert is left out: Error" in said.err  # its first stage wants a language model
    assert "1 recipes in" in said.out
    monkeypatch.setattr(sys, "argv", ["loss_curves.py", "pkd", *own])
    script.main()
    assert "running" not in capsys.readouterr().out
    assert ">pkd</text>" in output.read_text()
