"""Runs of many methods that are killed at any moment, with full disks and damaged caches."""

import random
import shutil

import pytest
from tests.faults.trials import assert_same_students, go_on, run, run_killed

DECODER = ("--set", "task.kind=causal-lm", "--set", "task.text=text")
METHODS = {
    "soft": (),
    "pkd+soft": (),
    "rail-kd+soft": (),
    "alp-kd+soft": (),
    "universal-kd+soft": (),
    "minilm": (),
    "theseus": (),
    "annealing-kd": (),
    "hard+soft": ("--set", "teacher.keep=disk"),
    "opd": (
        *(*DECODER, "--set", "rollout.engine=generate", "--set", "rollout.student=1"),
        *("--set", "rollout.prompt_tokens=2", "--set", "rollout.max_new_tokens=3"),
    ),
}
MOMENTS = 6
SIZES = [2**power for power in range(9, 17)]
"""Bytes that a file may have, of which 64 KiB are enough for the logs."""


@pytest.fixture(scope="module")
def new(world):
    """Return the arguments of a run of a method, with a checkpoint after every second step."""

    def _new(method):
        teacher = "lm-decoder" if method == "opd" else "teacher"
        training = {"batch_size": 16, "lr": 1e-3, "epochs": 1, "checkpoint_every": 2}
        return [
            *("--teacher", world / teacher, "--student-layers", 2, "--no-baseline"),
            *("--data", world / "train.jsonl", "--set", "task.max_length=32"),
            *("--set", f"task.validation={world / 'validation.jsonl'}", "--method", method),
            *(f"--set=training.{name}={value}" for name, value in training.items()),
            *METHODS[method],
        ]

    return _new


@pytest.fixture(scope="module")
def whole(new, tmp_path_factory):
    """Return the folder of a run of a method that nothing has happened to."""
    known = {}

    def _whole(method):
        if method not in known:
            folder = tmp_path_factory.mktemp("whole")
            status, said, _ = run(folder, "run", *new(method), "--output", folder / "out")
            assert status == 0, said
            known[method] = folder
        return known[method]

    return _whole


@pytest.mark.campaign
@pytest.mark.parametrize("moment", range(MOMENTS))
@pytest.mark.parametrize("method", METHODS)
def test_run_killed_at_any_moment_goes_on(new, whole, tmp_path, method, moment):
    after = random.Random(f"{method} {moment}").uniform(0.2, 4)
    run_killed(tmp_path, "run", *new(method), "--output", tmp_path / "out", after=after)
    go_on(tmp_path, "", -9, new(method))
    assert_same_students(tmp_path / "out", whole(method) / "out")


@pytest.mark.campaign
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", ["pkd+soft", "hard+soft"])
def test_run_that_cannot_write_large_files_goes_on_where_it_can(new, whole, tmp_path, method, size):
    arguments = (*new(method), "--output", tmp_path / "out")
    status, said, _ = run(tmp_path, "run", *arguments, at=size, kind="size")
    assert status in (0, 1, 2), said
    assert "Traceback" not in said
    if status != 0:
        go_on(tmp_path, said, status, new(method))
    assert_same_students(tmp_path / "out", whole(method) / "out")


def _cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def _empty(path):
    path.write_bytes(b"")


def _other(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _nested(path):
    path.write_bytes(b"[" * 100_000)


def _folder(path):
    path.unlink()
    path.mkdir()


def _gone(path):
    path.unlink()


def _dangling(path):
    path.unlink()
    path.symlink_to("nowhere")


def _unreadable(path):
    path.chmod(0)


DAMAGES = (_cut, _empty, _other, _nested, _folder, _gone, _dangling, _unreadable)
ENTRIES = ("answers/*.safetensors", "stages/*.json", "answers", "stages")


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("entry", "damage"),
    [
        (entry, damage)
        for entry in ENTRIES
        for damage in DAMAGES
        if "*" in entry or damage in (_dangling, _gone, _unreadable)
    ],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_damaged_cache_costs_time_and_nothing_else(new, whole, tmp_path, entry, damage):
    method = "hard+soft"
    shutil.copytree(whole(method) / "cache", tmp_path / "cache")
    for path in (tmp_path / "cache").glob(entry):
        if path.is_dir() and damage is not _unreadable:
            shutil.rmtree(path)
            path.touch()
        damage(path)
    status, said, _ = run(tmp_path, "run", *new(method), "--output", tmp_path / "out")
    for path in (tmp_path / "cache").glob(entry):
        if damage is _unreadable and path.is_dir():
            path.chmod(0o755)
    assert status == 0, said
    assert "Traceback" not in said
    assert_same_students(tmp_path / "out", whole(method) / "out")


@pytest.mark.campaign
@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("moment", range(2))
def test_two_ranks_of_which_some_are_killed_go_on(new, tmp_path, victims, moment):
    arguments = ("run", *new("pkd+soft"), "--output")
    once, again = tmp_path / "once", tmp_path / "again"
    for folder in (once, again):
        folder.mkdir()
    run_killed(once, *arguments, once / "out", after=0, ranks=2, victims=())
    after = random.Random(f"{victims} {moment}").uniform(0.5, 4)
    run_killed(again, *arguments, again / "out", after=after, ranks=2, victims=victims)
    if (again / "out/config.toml").exists():
        arguments = ("run", "--resume", "--output")
    run_killed(again, *arguments, again / "out", after=0, ranks=2, victims=())
    assert_same_students(again / "out", once / "out")
