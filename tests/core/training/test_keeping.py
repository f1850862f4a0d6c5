"""Answers of a teacher that are computed once: what is kept, and that nothing else changes."""

from __future__ import annotations

import errno
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tests.grids import first_of

from gkd_core.api import ConfigError
from gkd_core.data import array_spool
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.paths import LOGITS, Capture
from gkd_core.teachers import answer_file, kept
from gkd_core.training import keeping, loop
from gkd_core.training.assembly import build_stage
from gkd_core.training.keeping import keep_answers, teachers_to_keep

TWO_EPOCHS = ("training.steps=12", "training.evaluate_every=3", "training.checkpoint_every=3")
KINDS = {"classification": "teacher", "causal-lm": "lm-decoder"}


@pytest.fixture
def build(prepare_run, tmp_path):
    """Build the stage of a run: `build("method=soft")`."""

    def _build(*settings, teacher="teacher"):
        run = prepare_run(*settings, teachers=(teacher,))
        return build_stage(run.specs[0], run.registry, tmp_path / "stage", None)

    return _build


@pytest.fixture
def passes(monkeypatch):
    """The rows of each pass of a model without gradient in training, in the order of the passes."""
    stock, seen = Extractor.run, []

    def run(self, captures, inputs, *rest):
        if captures and not torch.is_grad_enabled() and not self.model.training:
            seen.append(len(inputs["input_ids"]))
        return stock(self, captures, inputs, *rest)

    monkeypatch.setattr(Extractor, "run", run)
    return seen


@pytest.fixture
def interrupt(monkeypatch):
    """Execute a run that is interrupted after 8 steps."""
    stock = loop.train_step

    def dies(stage, batches, step):
        if step.index == 8:
            raise KeyboardInterrupt
        return stock(stage, batches, step)

    def _interrupt(run):
        with monkeypatch.context() as dying:
            dying.setattr(loop, "train_step", dies)
            with pytest.raises(KeyboardInterrupt):
                run.execute()

    return _interrupt


def losses(run):
    lines = map(json.loads, (run.directory / "metrics.jsonl").read_text().splitlines())
    return [line["loss/total"] for line in lines if "loss/total" in line]


def student(run):
    return load_file(run.student / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_kept_logits_are_those_of_the_teacher(build, kind):
    name = KINDS[kind]
    stage = build("method=soft", f"task.kind={kind}", "teacher.keep=memory", teacher=name)
    answers = keep_answers(stage, [name], print)[0]
    for rows in ([5, 0, 17], [9]):
        batch = stage.collator.collate(stage.train, rows, epoch=1)
        with torch.no_grad():
            live = stage.teachers[0].run(frozenset({LOGITS}), batch.inputs)
        found, mask = answers.of(batch), batch.targets.mask
        torch.testing.assert_close(found[LOGITS][mask], live[LOGITS][mask])
        torch.testing.assert_close(
            found.head(torch.ones(3, 32)).dense() if kind == "causal-lm" else found[LOGITS],
            live.head(torch.ones(3, 32)).dense() if kind == "causal-lm" else live[LOGITS],
        )


def test_a_run_that_keeps_logits_learns_the_same_and_resumes_bit_for_bit(
    prepare_run, interrupt, passes
):
    live = prepare_run("method=soft", *TWO_EPOCHS, "teacher.keep=none", directory="live")
    live.execute()
    once, passes[:] = len(passes), []
    whole = prepare_run("method=soft", *TWO_EPOCHS, directory="whole")
    whole.execute()
    assert passes[:3] == [64, 32, 1], "all rows, and one for the head"
    assert once == 12 + len(passes[3:]), "and not in the 12 steps"
    assert (whole.results["distil"].kept, live.results["distil"].kept) == (("teacher",), ())
    before, now = losses(live), losses(whole)
    assert now == pytest.approx(before, rel=1e-3)
    assert now[0] == pytest.approx(before[0], rel=1e-5), "no step of Adam has enlarged rounding"

    interrupt(prepare_run("method=soft", *TWO_EPOCHS))
    resumed = prepare_run("method=soft", *TWO_EPOCHS)
    checkpoint = max(resumed.directory.glob("stages/distil/checkpoints/*/progress.json"))
    before = json.loads(checkpoint.read_text())["seconds"]
    resumed.execute()
    assert resumed.results["distil"].seconds > before > 0
    for name, weight in student(whole).items():
        assert torch.equal(student(resumed)[name], weight), name


def test_a_run_that_kept_nothing_goes_on_so(prepare_run, interrupt, passes):
    interrupt(prepare_run("method=soft", *TWO_EPOCHS, "teacher.keep=none"))
    passes.clear()
    resumed = prepare_run("method=soft", *TWO_EPOCHS)
    resumed.execute()
    assert passes.count(16) == 6, "the checkpoint of step 6 says that nothing is kept"
    done = json.loads((resumed.directory / "stages/distil/done.json").read_text())
    assert done["steps"] == 12


@pytest.mark.parametrize("keep", ["disk", "share"])
def test_runs_find_the_logits_that_another_has_put_on_the_disk(
    build, monkeypatch, tmp_path, passes, keep, world
):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "ROWS", 32)
    settings = ("method=soft", f"teacher.keep={keep}")
    first = keep_answers(build(*settings), ["teacher"], print)[0]
    assert passes == [32, 32, 32, 1]
    (file,) = (tmp_path / "cache/answers").glob("*.safetensors")
    again = keep_answers(build(*settings, "training.lr=1"), ["teacher"], print)[0]
    assert passes[4:] == [1]
    before = first.answers[LOGITS].values.clone()
    assert torch.equal(again.answers[LOGITS].values, before)
    keep_answers(build(*settings, "task.max_length=8"), ["teacher"], print)
    assert len(list(file.parent.glob("*.safetensors"))) == 2, "other tokens, other answers"
    twin = tmp_path / "twin"
    shutil.copytree(world / "teacher", twin)
    path = twin / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "relu"}))
    stage = build(*settings, teacher=str(twin))
    keep_answers(stage, [stage.config.teachers[0].name], print)
    assert len(list(file.parent.glob("*.safetensors"))) == 3, "another activation, other answers"
    file.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged"):
        mended = keep_answers(build(*settings), ["teacher"], print)[0]
    assert torch.equal(mended.answers[LOGITS].values, before)


STATES = {
    "pkd+soft": "its logits and hidden[2]|cls of 96 rows are kept",
    "minilm": "its attention[4], value[4] of 96 rows are kept",
    "distilbert": "its logits and hidden[4].normed of 96 rows are kept",
    "minilmv2": "its key[4], query[4], value[4] of 96 rows are kept",
}


@pytest.mark.parametrize("method", STATES)
def test_log_names_the_states_that_are_kept(build, method):
    said = []
    keep_answers(build(f"method={method}", "teacher.keep=memory"), ["teacher"], said.append)
    assert STATES[method] in said[-1]


def test_the_size_of_maps_is_said_before_they_are_kept(build):
    said = []
    kept = keep_answers(build("method=minilm", "teacher.keep=memory"), ["teacher"], said.append)
    maps = kept[0].answers[Capture("attention", 4)].values.nbytes / 2**20
    assert said[0] == (
        f"teacher: its attention[4] will take {maps:,.1f} MiB: they grow with the square of a "
        "text's length"
    )


def test_a_teacher_is_asked_about_as_many_rows_as_their_answers_allow(build, passes, monkeypatch):
    settings = ("method=minilm", "teacher.keep=memory")
    whole = keep_answers(build(*settings), ["teacher"], print)[0]
    assert passes == [64, 32]
    monkeypatch.setattr(kept, "BYTES", most := whole.size // 5)
    parts = keep_answers(build(*settings), ["teacher"], print)[0]
    counts = passes[2:]
    assert sum(counts) == 96
    assert len(counts) >= 5
    for capture, own in whole.answers.items():
        torch.testing.assert_close(parts.answers[capture].values, own.values)
    monkeypatch.setattr(kept, "BYTES", 1)
    keep_answers(build(*settings), ["teacher"], print)
    assert passes[2 + len(counts) :] == [1] * 96, "there is at least a row"
    assert most > 0


def test_answers_that_the_disk_has_no_room_for_are_refused(build, passes, monkeypatch, tmp_path):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(keeping, "IN_MEMORY", 0)
    settings = ("method=minilm", "teacher.keep=disk")
    kept_on_disk = keep_answers(build(*settings), ["teacher"], print)[0]
    (file,) = (tmp_path / "cache/answers").glob("*.safetensors")
    free = [2 * kept_on_disk.size - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free[0]))
    keep_answers(build(*settings), ["teacher"], print)
    file.unlink()
    passes.clear()
    refused = r"teacher\.keep = 'disk' \(the answers of the teacher 'teacher'\): about .* free\."
    with pytest.raises(ConfigError, match=refused):
        keep_answers(build(*settings), ["teacher"], print)
    assert passes == [64], "it is asked no more than this takes"
    assert not file.exists()
    free[0] += 1
    keep_answers(build(*settings), ["teacher"], print)
    assert file.exists()


def test_a_disk_that_fills_up_costs_memory_and_leaves_no_file(build, monkeypatch, tmp_path):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(array_spool, "IN_MEMORY", 1000)
    settings = ("method=minilm", "teacher.keep=disk")
    whole = keep_answers(build("method=minilm", "teacher.keep=memory"), ["teacher"], print)[0]
    left = iter(range(3))

    def fills(file, content, stock=array_spool.write_whole):
        if next(left, None) is None:
            file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        stock(file, content)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(array_spool, "write_whole", fills)
    monkeypatch.setattr(answer_file, "_save", full)
    with pytest.warns(UserWarning, match="No space left"):
        found = keep_answers(build(*settings), ["teacher"], print)[0]
    for capture, own in whole.answers.items():
        assert torch.equal(found.answers[capture].values, own.values), capture
    assert not list((tmp_path / "cache/answers").glob("*.safetensors*"))


@pytest.mark.parametrize("keep", first_of(["disk", "memory"]))
@pytest.mark.parametrize("method", first_of(STATES, 2))
def test_states_are_kept_if_asked_for(
    prepare_run, interrupt, passes, monkeypatch, tmp_path, method, keep
):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(array_spool, "IN_MEMORY", 1000)
    live = prepare_run(f"method={method}", *TWO_EPOCHS, "teacher.keep=none", directory="live")
    live.execute()
    once, passes[:] = len(passes), []
    settings = (f"method={method}", *TWO_EPOCHS, f"teacher.keep={keep}")
    whole = prepare_run(*settings, directory="whole")
    whole.execute()
    taken = 3 if "logits" in STATES[method] else 2
    assert once == 12 + len(passes[taken:]), "all rows, one for a head, and not in the 12 steps"
    before, now = losses(live), losses(whole)
    assert now[0] == pytest.approx(before[0], rel=1e-5)
    assert now == pytest.approx(before, rel=1e-2)

    interrupt(prepare_run(*settings))
    resumed = prepare_run(*settings)
    resumed.execute()
    for name, weight in student(whole).items():
        assert torch.equal(student(resumed)[name], weight), name


@pytest.mark.parametrize(
    ("settings", "teacher", "names"),
    [
        (("method=soft", "training.steps=7"), "teacher", ["teacher"]),
        (("method=soft", "training.steps=6"), "teacher", []),
        (("method=pkd+soft", "training.steps=12"), "teacher", []),
        (("method=soft", "training.steps=12", "task.kind=causal-lm"), "lm-decoder", []),
        (("method=soft", "training.steps=6", "teacher.keep=share"), "teacher", ["teacher"]),
        (("method=pkd+soft", "training.steps=12", "teacher.keep=share"), "teacher", []),
    ],
)
def test_what_is_kept_unasked(build, settings, teacher, names):
    assert teachers_to_keep(build(*settings, teacher=teacher)) == names


@pytest.mark.parametrize(
    ("settings", "teacher", "reason"),
    [
        (("method=soft", "task.kind=masked-lm"), "lm-teacher", "masked-lm masks other tokens"),
    ],
)
def test_what_cannot_be_kept_is_refused_if_asked_for(prepare_run, settings, teacher, reason):
    with pytest.raises(ConfigError, match=rf"teacher\.keep = 'memory'.*{reason}"):
        prepare_run(*settings, "teacher.keep=memory", teachers=(teacher,))
