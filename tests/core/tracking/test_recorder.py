"""What is written and shown while a run trains: metrics, TensorBoard, log, terminal."""

from __future__ import annotations

import io
import json
import re
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gkd_core.contract.step import Step
from gkd_core.tracking.display import PlainLines, ProgressBar, display
from gkd_core.tracking.recorder import JsonLines, Recorder, TextLog
from gkd_core.tracking.sinks.tensorboard import TensorBoard


def _step(index, total=8, stage="distil", epoch=0):
    return Step(index, total, epoch, stage, torch.default_generator)


def _curves(directory):
    """Return {curve: {step: value}} of a TensorBoard folder."""
    events = EventAccumulator(str(directory))
    events.Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }


def _tell(recorder, steps, *, losses=None, total=8, done=0):
    recorder.start_stage("distil", total, done)
    for index in steps:
        recorder.log_step(
            _step(index, total),
            losses or {"total": 3.0 + index, "pkd": 1.0, "soft": 2.0},
            lr=0.01 * index,
            gradient_norm=0.5,
            samples_per_second=123.4,
        )


@contextmanager
def _on_board(directory):
    """Record a run in a folder with TensorBoard."""
    recorder = Recorder([], [TensorBoard()])
    with recorder.record(SimpleNamespace(directory=directory), {}):
        yield recorder


@pytest.fixture
def recorded(prepare_run, tmp_path):
    """A finished run that told every sink; its folder."""
    log = TextLog(tmp_path / "log.txt")
    settings = ("method=pkd+soft+hard", "training.epochs=2")
    run = prepare_run(*settings, listeners=[log], sinks=[TensorBoard()])
    with run.recorder.record(run.info, run.resolved.values()):
        run.execute()
    return run


def test_metrics_hold_every_term_and_every_evaluation(recorded):
    lines = (recorded.directory / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    steps = [e for e in entries if "loss/total" in e]
    evaluations = [e for e in entries if "loss/total" not in e]
    assert [(e["stage"], e["step"], e["epoch"]) for e in steps] == [
        ("distil", step, (step - 1) // 6) for step in range(2, 13, 2)
    ]
    for entry in steps:
        assert entry.keys() == {
            "stage", "step", "epoch", "loss/total", "loss/hard", "loss/pkd", "loss/soft",
            "lr", "gradient_norm", "samples_per_second",
        }  # fmt: skip
        terms = entry["loss/hard"] + entry["loss/pkd"] + entry["loss/soft"]
        assert entry["loss/total"] == pytest.approx(terms)
        assert entry["samples_per_second"] > 0
        assert entry["gradient_norm"] > 0
    assert [e["step"] for e in evaluations] == [6, 12]
    assert evaluations[0].keys() == {
        "stage", "step", "epoch", "validation/loss", "validation/accuracy", "validation/macro_f1",
    }  # fmt: skip


def test_tensorboard_shows_what_the_metrics_hold(recorded):
    curves = _curves(recorded.directory / "tensorboard" / "distil")
    lines = (recorded.directory / "metrics.jsonl").read_text().splitlines()
    expected: dict[str, dict[int, float]] = {}
    for entry in map(json.loads, lines):
        for name, value in entry.items():
            if name not in ("stage", "step", "epoch"):
                name = name if "/" in name else f"train/{name}"
                expected.setdefault(name, {})[entry["step"]] = value
    assert curves.keys() == expected.keys()
    for name, points in expected.items():
        assert curves[name] == pytest.approx(points, rel=1e-6)


def test_log_says_what_the_student_is_made_of_and_every_logged_step(recorded, tmp_path):
    lines = (tmp_path / "log.txt").read_text().splitlines()
    text = "\n".join(lines)
    assert "teacher blocks 2, 4" in text
    assert "stage distil: steps 1 to 12" in lines
    logged = [line for line in lines if line.startswith("distil step") and "loss/total" in line]
    assert len(logged) == 6
    assert re.search(
        r"distil step 12/12  loss \S+  accuracy \S+  macro_f1 \S+ \(validation\)", text
    )


def test_metrics_of_steps_to_be_done_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    recorder = Recorder([JsonLines(path)])
    recorder.start_stage("first", 8, 0)
    recorder.log_evaluation(_step(7, stage="first"), {"loss": 1.0})
    _tell(recorder, range(6))
    with path.open("a") as file:
        file.write('{"stage": "distil", "ste')
    _tell(Recorder([JsonLines(path)]), range(4, 8), done=4)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [e["step"] for e in entries if e["stage"] == "first"] == [8]
    assert [e["step"] for e in entries if e["stage"] == "distil"] == list(range(1, 9))


@pytest.mark.parametrize("done", [0, 3])
def test_curves_of_steps_to_be_done_again_are_hidden(tmp_path, done):
    with _on_board(tmp_path) as before:
        _tell(before, range(6), losses={"total": 1.0})
        before.end_stage()
    with _on_board(tmp_path) as after:
        _tell(after, range(done, 8), losses={"total": 2.0}, done=done)
        after.end_stage()
    expected = {step: 1.0 if step <= done else 2.0 for step in range(1, 9)}
    assert _curves(tmp_path / "tensorboard" / "distil")["loss/total"] == expected


def test_stages_have_curves_of_their_own(tmp_path):
    with _on_board(tmp_path) as recorder:
        for name in ("first", "second"):
            recorder.start_stage(name, 1, 0)
            recorder.log_evaluation(_step(0, stage=name), {"accuracy": 0.5})
            recorder.end_stage()
    first, second = (tmp_path / "tensorboard" / name for name in ("first", "second"))
    assert _curves(first) == _curves(second)


def test_output_that_is_no_terminal_gets_plain_lines():
    console = Console(file=io.StringIO(), width=40)
    shown = display(console)
    assert isinstance(shown, PlainLines)
    recorder = Recorder([shown])
    _tell(recorder, [3])
    recorder.log_evaluation(_step(3), {"loss": 0.25, "accuracy": 0.875})
    recorder.say("[done]")
    recorder.end_stage()
    assert console.file.getvalue().splitlines() == [
        "stage distil: steps 1 to 8",
        "distil step 4/8  total 6  pkd 1  soft 2  123 samples/s  eta 0:00:00",
        "distil step 4/8  loss 0.25  accuracy 0.875 (validation)",
        "[done]",
    ]


def test_a_plain_line_with_many_losses_is_continued_before_80_characters():
    console = Console(file=io.StringIO(), width=40)
    recorder = Recorder([PlainLines(console)])
    _tell(recorder, [3], losses={f"term{n}": 1.25 for n in range(12)})
    _, *lines = console.file.getvalue().splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    assert [line[:4].isspace() for line in lines] == [False, True, True]
    parts = "  ".join(line.strip() for line in lines).split("  ")
    assert parts[1:-2] == [f"term{n} 1.25" for n in range(12)]


def test_terminal_gets_a_bar_with_losses_speed_and_time_left():
    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)
    shown = display(console)
    assert isinstance(shown, ProgressBar)
    recorder = Recorder([shown])
    _tell(recorder, [1, 3], total=8)
    recorder.log_evaluation(_step(3), {"accuracy": 0.875})
    recorder.end_stage()
    text = console.file.getvalue()
    assert "distil step 4: accuracy 0.8750" in text
    last = [line for line in text.replace("\r", "\n").splitlines() if "4/8" in line][-1]
    assert "123 samples/s" in last
    assert re.search(r"eta.*(\d:\d\d:\d\d|-:--:--)", last)
    assert "total 6  pkd 1  soft 2" in last


def test_resumed_bar_starts_where_the_stage_stands():
    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)
    recorder = Recorder([ProgressBar(console)])
    recorder.start_stage("distil", 8, 5)
    recorder.end_stage()
    assert "5/8" in console.file.getvalue()


def test_failed_stage_leaves_the_terminal_and_the_files_closed(prepare_run, monkeypatch):
    from gkd_core.training import loop

    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)
    bar, board = ProgressBar(console), TensorBoard()
    run = prepare_run("method=soft", listeners=[bar], sinks=[board])
    monkeypatch.setattr(loop, "train_step", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), run.recorder.record(run.info, {}):
        run.execute()
    assert bar.progress is None
    assert board.writer is None
    assert "\x1b[?25h" in console.file.getvalue(), "the cursor is shown again"


def test_log_and_terminal_show_control_characters_as_escapes(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)
    recorder = Recorder([TextLog(tmp_path / "log.txt"), PlainLines(console)])
    recorder.say("class \x1b[2Jbad\u202e\nnext")
    expected = "class \\x1b[2Jbad\\u202e\nnext\n"
    assert (tmp_path / "log.txt").read_text() == expected
    assert console.file.getvalue() == expected
