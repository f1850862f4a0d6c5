"""A run goes on with what it began with: changes are named, and refused unless accepted."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from gkd_core import digest
from gkd_core.cli import ranks
from gkd_core.contract.task import DefaultTeacher
from gkd_core.data.files import Files
from gkd_core.lease import Lease
from gkd_core.parallel import launch
from gkd_core.plugins import registry
from gkd_core.runs import inputs
from gkd_core.runs.inputs import CODE, CONTENT, CORE, VERSIONS
from gkd_core.runs.resumption import changed_inputs
from gkd_core.training import loop

MADE = ("teacher", "train.jsonl", "validation.jsonl")
SETTINGS = (
    *("--student-layers", 2, "--data", "train.jsonl", "--no-baseline"),
    *("--set", "task.validation=validation.jsonl", "--set", "task.max_length=32"),
    *("--method", "soft+hard", "--set", "training.batch_size=16", "--set", "training.lr=1e-3"),
    *("--set", "training.epochs=1", "--set", "training.checkpoint_every=2"),
    *("--set", "training.evaluate_every=2", "--output", "run"),
)
RESUME = ("run", "--resume", "--output", "run")


class Killed(BaseException):
    """The process dies here."""


@contextmanager
def dies(monkeypatch, stage="distil", before=3):
    """Let a run of 6 steps die in a stage before a step; it has a checkpoint of every second."""
    stock = loop.train_step

    def train_step(built, batches, step):
        if (step.stage, step.index) == (stage, before):
            raise Killed
        return stock(built, batches, step)

    with monkeypatch.context() as dying:
        dying.setattr(loop, "train_step", train_step)
        with suppress(Killed):
            yield
            pytest.fail(f"the run does not reach step {before} of stage {stage}")


@pytest.fixture
def interrupt(invoke, world, tmp_path, monkeypatch):
    """Begin a run in an empty folder with rows and a teacher of its own, until it dies."""

    def _interrupt(*settings, stage="distil", teacher=("--teacher", "teacher")):
        for name in MADE:
            copy = shutil.copytree if (world / name).is_dir() else shutil.copy
            copy(world / name, tmp_path / name)
        with dies(monkeypatch, stage):
            invoke("run", *SETTINGS, *teacher, *settings)

    return _interrupt


@pytest.fixture(scope="session")
def interrupted_once():
    """Folders of interrupted runs, each of which is made once."""
    return {}


@pytest.fixture
def interrupted(interrupt, interrupted_once, tmp_path, tmp_path_factory):
    """A copy of an interrupted run, with its rows and teacher, in the current folder."""
    if not interrupted_once:
        interrupt()
        interrupted_once["run"] = tmp_path_factory.mktemp("interrupted")
        shutil.copytree(tmp_path, interrupted_once["run"], dirs_exist_ok=True)
    shutil.copytree(interrupted_once["run"], tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def checkpoint(run):
    return max(run.glob("stages/*/checkpoints/*"))


def remembered(run):
    """Return the cache entries of finished stages."""
    return list((run.parent / "cache").glob("stages/*.json"))


def outcome(run):
    return json.loads(next(run.glob("stages/*/done.json")).read_text())


def scale(path):
    weights = {name: 1.5 * value for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def other_weights(run):
    scale(run.parent / "teacher/model.safetensors")


def fewer_rows(run):
    path = run.parent / "train.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:48]) + "\n")


def other_validation_rows(run):
    edit(run.parent / "validation.jsonl", "movie", "film")


def other_tokenizer(run):
    edit(run.parent / "teacher/tokenizer.json", '"plot"', '"plots"')


def edited_settings(run):
    edit(run / "config.toml", "lr = 0.001", "lr = 0.002")


def cut_settings(run):
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text[: text.index("[training]")])


def nearly_no_settings(run):
    (run / "config.toml").write_text((run / "config.toml").read_text()[:200].rpartition("\n")[0])


def no_random_states(run):
    (checkpoint(run) / "random.safetensors").unlink()


def far_ahead(run):
    edit(checkpoint(run) / "progress.json", '"step": 2', '"step": 1000000000')


def other_best_student(run):
    scale(checkpoint(run) / "best.safetensors")


def foreign_file(run):
    shutil.copy(checkpoint(run) / "random.safetensors", checkpoint(run) / "random-1.safetensors")


def no_manifest(run):
    (checkpoint(run) / "manifest.json").unlink()


def cut_manifest(run):
    path = checkpoint(run) / "manifest.json"
    path.write_text(path.read_text()[:100])


CHANGES = {
    other_weights: ["teacher.model: model.safetensors: was ", "bytes, SHA-256 ", ", is "],
    fewer_rows: ["training rows: was 96, SHA-256 ", ", is 48, SHA-256 "],
    other_validation_rows: ["validation rows: was 40, SHA-256 ", ", is 40, SHA-256"],
    other_tokenizer: ["tokenizer of the student: was ", "teacher.model: tokenizer.json: was "],
    edited_settings: ["these settings differ: training.lr", "training.lr: was 0.001, is 0.002"],
    cut_settings: ["training.epochs: was 1, is 3", "training.lr: was 0.001, is 5e-05"],
    nearly_no_settings: ["task.max_length: was 32, is 48", "training.epochs: was 1, is 50"],
    no_random_states: ["step-00000002: random.safetensors: was ", " bytes, SHA-256 ", "is missing"],
    far_ahead: ["step-00000002: progress.json: was "],
    other_best_student: ["step-00000002: best.safetensors: was "],
    foreign_file: ["step-00000002: random-1.safetensors: was not there, is "],
    no_manifest: ["step-00000002: manifest.json: was written by version ", "is missing"],
    cut_manifest: ["manifest.json cannot be read", "Restore the file, or start a new run"],
}
"""What may have changed, and what is said of it."""


def test_answers_that_have_moved_are_named_again_and_others_are_refused(interrupt, invoke, world):
    rows = ("--teacher", world / "teacher", "--data", world / "train.jsonl", "--method", "soft")
    rows += (
        "--set",
        f"task.validation={world / 'validation.jsonl'}",
        "--set",
        "task.max_length=32",
    )
    assert invoke("cache", *rows, "--output", "größe 1/answers").code == 0
    assert invoke("cache", *rows, "--output", "others", "--dtype", "fp32").code == 0
    interrupt("--teacher-cache", "größe 1/answers")
    shutil.move("größe 1/answers", "moved here")
    assert "größe 1/answers holds no answers" in invoke(*RESUME).err
    refused = invoke(*RESUME, "--teacher-cache", "others")
    assert "these inputs differ: teacher.model: answers" in refused.err
    done = invoke(*RESUME, "--teacher-cache", "moved here")
    assert done.code == 0, done.err
    assert outcome(Path("run"))["differences"] == []


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_named_and_refused(interrupted, invoke, change):
    change(interrupted)
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    done = invoke(*RESUME)
    assert done.code == 2
    assert done.err.count("Error: ") == 1
    for part in CHANGES[change]:
        assert part in done.err
    assert {p: p.read_bytes() for p in interrupted.rglob("*") if p.is_file()} == before
    assert not remembered(interrupted)


def test_all_changes_are_named_at_once(interrupted, invoke):
    for change in (other_weights, fewer_rows, no_random_states):
        change(interrupted)
    said = invoke(*RESUME).err
    for change in (other_weights, fewer_rows, no_random_states):
        assert CHANGES[change][0] in said
    assert "with another --output, or continue with --accept-changes" in said


@pytest.mark.parametrize("change", [other_weights, edited_settings, no_random_states])
def test_an_accepted_change_is_noted_and_its_student_never_reused(interrupted, invoke, change):
    change(interrupted)
    done = invoke(*RESUME, "--accept-changes")
    assert done.code == 0, done.err
    said = CHANGES[change][-1] if change is edited_settings else CHANGES[change][0]
    for record in ("log.txt", "report.html"):
        assert f"resumed: {said}" in (interrupted / record).read_text()
    result = outcome(interrupted)
    assert result["fingerprint"] is None
    assert [d["name"] for d in result["differences"]] == [said.partition(": was")[0]]
    assert not remembered(interrupted)


def test_a_change_stays_known_if_the_run_dies_again(interrupted, invoke, monkeypatch):
    other_weights(interrupted)
    with dies(monkeypatch, before=5):
        invoke(*RESUME, "--accept-changes")
    assert checkpoint(interrupted).name == "step-00000004"
    done = invoke(*RESUME)
    assert done.code == 0, done.err
    assert [d["name"] for d in outcome(interrupted)["differences"]] == [
        "teacher.model: model.safetensors"
    ]
    assert not remembered(interrupted)


def test_a_file_that_cannot_be_loaded_is_named_though_changes_are_accepted(interrupted, invoke):
    (checkpoint(interrupted) / "student.safetensors").write_bytes(b"cut")
    done = invoke(*RESUME, "--accept-changes")
    assert done.code == 2
    assert "step-00000002 cannot be loaded: " in done.err


def lacks_a_weight(file):
    weights = load_file(file)
    del weights[min(weights)]
    save_file(weights, file)


def has_a_weight_that_would_be_broadcast(file):
    weights = load_file(file)
    first = min(weights)
    save_file(weights | {first: weights[first][:1].clone()}, file)


def has_another_key(file):
    file.write_text(json.dumps(json.loads(file.read_text()) | {"speed": 1}))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "student.safetensors",
            lacks_a_weight,
            "weight bert.embeddings.LayerNorm.bias is missing",
        ),
        (
            "student.safetensors",
            has_a_weight_that_would_be_broadcast,
            "the weight bert.embeddings.LayerNorm.bias has the shape (1,), not (32,)",
        ),
        ("optimizer.safetensors", lacks_a_weight, "the tensor 0.exp_avg is missing"),
        ("progress.json", has_another_key, "unexpected keyword argument 'speed'"),
    ],
)
def test_a_file_that_fits_no_stage_is_named_though_changes_are_accepted(
    interrupted, invoke, name, change, message
):
    change(checkpoint(interrupted) / name)
    done = invoke(*RESUME, "--accept-changes")
    assert done.code == 2
    assert "cannot be loaded: " in done.err
    assert message in " ".join(done.err.split())


@pytest.mark.parametrize("rest", ["", 'method = "soft"\n'])
def test_a_run_does_not_go_on_with_what_is_left_of_its_configuration(interrupted, invoke, rest):
    (interrupted / "config.toml").write_text(rest)
    done = invoke(*RESUME, "--accept-changes")
    assert done.code == 2
    assert "config.toml has been cut off: it lacks " in done.err
    assert "task, training, which gkd has written" in done.err


def test_an_unchanged_run_goes_on_and_serves_others(interrupted, invoke):
    done = invoke(*RESUME)
    assert done.code == 0, done.err
    assert "resumed: " not in (interrupted / "log.txt").read_text()
    assert outcome(interrupted)["differences"] == []
    assert len(remembered(interrupted)) == 1


def test_a_teacher_may_have_moved(interrupted, invoke, tmp_path):
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    done = invoke(*RESUME, "--teacher", "elsewhere")
    assert done.code == 0, done.err
    assert outcome(interrupted)["differences"] == []


def test_intervals_and_layout_may_change(interrupted, invoke):
    changed = ("--set", "training.checkpoint_every=1", "--set", "training.log_every=3")
    done = invoke(*RESUME, *changed, "--set", "parallel.device=cpu")
    assert done.code == 0, done.err
    log = (interrupted / "log.txt").read_text()
    assert "resumed: training.checkpoint_every: was 2, is 1\n" in log
    assert "resumed: training.log_every: was 10, is 3\n" in log
    assert len(outcome(interrupted)["differences"]) == 2
    assert not remembered(interrupted), "it is not what a run with these intervals gives"


@pytest.mark.parametrize("accepts", [False, True])
def test_ranks_are_told_whether_changes_are_accepted(monkeypatch, accepts):
    commands = []
    monkeypatch.setattr(launch, "start_ranks", lambda *given: commands.append(given))
    monkeypatch.setattr(ranks, "_distributed", False)
    ranks.start_ranks(2, Lease(Path("run"), "mine"), accepts)
    (given,) = commands
    assert given[1].count("--accept-changes") == accepts
    assert given[2] == {"GKD_LEASE": "mine"}


def test_a_new_version_is_noted(interrupted, invoke, monkeypatch):
    real = inputs.version
    monkeypatch.setattr(inputs, "version", lambda name: "99.0" if name == "torch" else real(name))
    done = invoke(*RESUME)
    assert done.code == 0, done.err
    assert (
        f"version of torch: was {real('torch')}, is 99.0" in (interrupted / "log.txt").read_text()
    )
    assert [d["now"] for d in outcome(interrupted)["differences"]] == ["99.0"]
    assert not remembered(interrupted)


def test_large_files_are_not_read_again(interrupt, invoke, monkeypatch, tmp_path):
    interrupt()
    read = []
    stock = digest._blocks
    monkeypatch.setattr(digest, "_blocks", lambda path: read.append(path.name) or stock(path))
    with dies(monkeypatch, before=4):
        invoke(*RESUME)
    assert {"student.safetensors", "optimizer.safetensors"} <= set(read), "the checkpoint is read"
    assert not {"model.safetensors", "tokenizer.json"} & set(read), "the teacher is not"
    path = tmp_path / "teacher/model.safetensors"
    path.write_bytes(path.read_bytes())
    assert invoke(*RESUME).code == 0, "a file that was only touched is read, and is the same"
    assert "model.safetensors" in read


STAGES = """
[[stages]]
name = "assistant"
student.layers = 3
[[stages]]
name = "small"
student.layers = 2
student.new_student = true
teacher = "stage:assistant"
"""


@pytest.fixture
def staged(interrupt, tmp_path):
    """A run that died in its second stage, whose teacher is the student of the first."""
    (tmp_path / "stages.toml").write_text(STAGES)
    interrupt("stages.toml", stage="small")
    return tmp_path / "run"


@pytest.mark.exhaustive
def test_what_a_finished_stage_learned_from_is_checked_too(staged, invoke):
    other_weights(staged)
    scale(staged / "stages/assistant/student/model.safetensors")
    done = invoke(*RESUME)
    assert done.code == 2
    assert "\n  stages.assistant.teacher.model: model.safetensors: was" in done.err
    assert "\n  student of stage assistant: model.safetensors: was" in done.err
    assert "stages.small.teacher.model: model.safetensors: was" in done.err
    assert invoke(*RESUME, "--accept-changes").code == 0
    assert len(remembered(staged)) == 1, "the first stage is what it was"


@pytest.mark.exhaustive
def test_an_accepted_change_is_not_asked_for_again_in_the_next_stage(
    staged, invoke, monkeypatch, tmp_path
):
    other_weights(staged)
    with dies(monkeypatch, "small", before=5):
        invoke(*RESUME, "--accept-changes")
    done = invoke(*RESUME)
    assert done.code == 0, done.err
    done = json.loads((staged / "stages/small/done.json").read_text())
    assert done["fingerprint"] is None
    names = {difference["name"] for difference in done["differences"]}
    assert names == {"stages.assistant.teacher.model: model.safetensors"}


class Shipped(Files):
    """Rows of a file, with a default teacher."""

    name = "shipped"

    def default_teacher(self, data, size="large"):
        training = {"epochs": 1, "batch_size": 16, "evaluate_every": 2, "checkpoint_every": 2}
        return DefaultTeacher(lambda place: shutil.copytree("teacher", place), training)


@pytest.fixture
def shipped(monkeypatch):
    installed = registry()
    monkeypatch.setitem(vars(installed), "tasks", {**installed.tasks, "shipped": Shipped})


@pytest.mark.exhaustive
def test_a_default_teacher_of_changed_rows_serves_no_other_run(
    shipped, interrupt, invoke, tmp_path
):
    interrupt("--set", "task.name=shipped", stage="teacher", teacher=())
    fewer_rows(tmp_path / "run")
    assert "training rows of stage teacher: was 96" in invoke(*RESUME).err
    done = invoke(*RESUME, "--accept-changes")
    assert done.code == 0, done.err
    assert not list((tmp_path / "cache").glob("teachers/*/trained"))


def test_a_finished_run_is_not_refused_for_what_it_no_longer_reads(interrupted, invoke):
    assert invoke(*RESUME).code == 0
    fewer_rows(interrupted)
    done = invoke(*RESUME)
    assert done.code == 0, done.err
    assert "stage distil is finished already; changed since then: data" in done.out
    edited_settings(interrupted)
    assert "training.lr: was 0.001, is 0.002" in invoke(*RESUME).err


BEFORE = {
    CONTENT: {},
    CODE: {CORE: {"a.py": "1"}, "gkd-methods-own": {"b.py": "1"}, "other": {"c.py": "1"}},
    VERSIONS: {CORE: "0.2.0", "gkd-methods-own": "0.2.0", "other": "1.0"},
}


@pytest.mark.parametrize(
    ("code", "versions", "expected"),
    [
        ({}, {}, {}),
        ({CORE: {"a.py": "2"}}, {}, {"code of gkd-core (a.py)": True}),
        ({"gkd-methods-own": {"b.py": "2"}}, {}, {"code of gkd-methods-own (b.py)": False}),
        (
            {CORE: {"a.py": "2"}, "gkd-methods-own": {"b.py": "2"}},
            {CORE: "0.3.0", "gkd-methods-own": "0.3.0"},
            {"version of gkd-core": True, "version of gkd-methods-own": True},
        ),
        (
            {"other": {"c.py": "1", "d.json": "1"}},
            {"other": "1.1"},
            {"code of other (d.json)": False, "version of other": True},
        ),
        ({"other": {}}, {}, {"code of other (c.py)": False}),
    ],
)
def test_code_of_plugins_must_stay_and_a_version_of_gkd_may_follow(code, versions, expected):
    now = {
        CONTENT: {},
        CODE: {**BEFORE[CODE], **code},
        VERSIONS: {**BEFORE[VERSIONS], **versions},
    }
    found = {difference.name: difference.free for difference in changed_inputs(BEFORE, now)}
    assert found == expected
