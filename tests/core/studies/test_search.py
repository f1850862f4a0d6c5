"""`gkd search`: what is within the budget is tried, what falls behind is stopped.

Candidates are not trained: a pretended process says how good each is, and takes a second.
"""

from __future__ import annotations

import json
import math
import signal
import tomllib
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

from gkd_core.contract.model_info import ModelInfo
from gkd_core.errors import ConfigError
from gkd_core.studies import search as search_module
from gkd_core.studies import shapes
from gkd_core.studies.attempt import Attempt
from gkd_core.studies.budget import Budget
from gkd_core.studies.rungs import Rungs
from gkd_core.studies.search_space import SearchedRecipe
from gkd_core.studies.shapes import MeasuredShape, Shape, shapes_of, slices_of
from gkd_core.studies.slices import SCALES, TeacherSlices

QUALITIES = {"kd": 0.9, "hard": 0.6}


class PretendedRun:
    """A run that evaluates once at each look, and is finished after the last evaluation."""

    finish_run = None
    started: list[str]

    def __init__(self, folder, cell):
        self.folder, self.cell = folder, cell
        self.status = None
        self.quality = self.quality_of(cell)

    @staticmethod
    def quality_of(cell):
        """Return how good a candidate is, at each of its evaluations."""
        return QUALITIES[cell.axes["method"]] - 0.05 * (cell.axes["student.init"] != "last")

    @staticmethod
    def stage_of(cell):
        """Return the stage that it evaluates."""
        return "distil"

    @classmethod
    def start(cls, folder, cell, threads):
        """Start, or go on."""
        cls.started.append(cell.name)
        assert folder.config_file(cell.name).exists()
        return cls(folder, cell)

    @property
    def is_over(self):
        """Evaluate, and end after 3 evaluations."""
        if self.status is None:
            directory = self.folder.run_directory(self.cell)
            directory.mkdir(parents=True, exist_ok=True)
            with (directory / "metrics.jsonl").open("a+") as file:
                file.seek(0)
                step = 2 * (len(file.readlines()) + 1)
                entry = {
                    "stage": self.stage_of(self.cell),
                    "step": step,
                    "validation/accuracy": self.quality,
                }
                file.write(json.dumps(entry) + "\n")
            if step == 6:
                right = np.arange(300) < 300 * self.quality
                stage = self.stage_of(self.cell)
                type(self).finish_run(directory, self.cell, right, self.quality, stage)
                self._end(0)
        return self.status is not None

    def stop(self):
        """Stop with a checkpoint, unless it is over."""
        if self.status is None:
            self._end(75)

    def _end(self, status):
        self.status = status
        Attempt(1, status).save(self.folder.attempt_file(self.cell))


@pytest.fixture
def pretend(monkeypatch, finish_run):
    """Candidates are pretended to be trained."""
    PretendedRun.finish_run, PretendedRun.started = staticmethod(finish_run), []
    monkeypatch.setattr(search_module, "CellProcess", PretendedRun)
    clock = SimpleNamespace(
        monotonic=lambda: float(len(PretendedRun.started)), sleep=lambda seconds: None
    )
    monkeypatch.setattr(search_module, "time", clock)
    monkeypatch.setattr(import_module("gkd_core.cli.search"), "time", clock)
    monkeypatch.setattr(shapes, "measure_student", untrained_cost)
    return PretendedRun


def untrained_cost(spec, shape, student, budget):
    """Return what a student costs that is not there, as no candidate was trained."""
    teacher, (found,) = shapes.measure_shapes(spec, [shape], budget)
    return teacher, found


def test_budget_names_what_is_missed():
    budget = Budget.read("0.5x", "20MB", None, "97%")
    assert (budget.latency(8.0), budget.bytes, budget.kept) == (4.0, 20_000_000, 0.97)
    assert budget.too_large(4_000_000) == ""
    assert budget.too_large(6_000_000) == "24.0 MB; 20.0 MB are allowed"
    assert budget.too_slow(4.5, teacher=8.0) == "4.50 ms; 4.00 ms are allowed"
    assert Budget.read("5ms", None, "10M", None).latency(100.0) == 5.0
    with pytest.raises(ConfigError, match=r"--max-latency 5: expected a number above 0 with a"):
        Budget.read("5", None, None, None)
    with pytest.raises(ConfigError, match="nothing limits the student"):
        Budget.read(None, None, None, None)


def test_shapes_keep_the_size_of_heads():
    teacher = ModelInfo("t", "bert", 6, 384, 12, 12, 32, 1536, 30522, 2, 512)
    found = shapes_of(teacher)
    assert Shape(6, 384, 12) in found
    assert {shape.hidden_size // shape.heads for shape in found} == {32}
    assert {shape.hidden_size for shape in found} == {384, 288, 192}
    assert {shape.layers for shape in found} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("layers", [2, 8, 10, 12, 14, 22])
def test_half_of_the_teachers_blocks_are_among_the_shapes(layers):
    teacher = ModelInfo("t", "bert", layers, 384, 12, 12, 32, 1536, 30522, 2, 512)
    assert layers // 2 in {shape.layers for shape in shapes_of(teacher)}


def test_slices_keep_the_width_of_the_residual_stream():
    teacher = ModelInfo("t", "bert", 6, 384, 12, 12, 32, 1536, 30522, 2, 512)
    found = slices_of(teacher)
    assert {(each.layers, each.scale) for each in found} == {
        (layers, scale) for layers in range(1, 7) for scale in SCALES
    }
    assert {each.hidden_size for each in found} == {384}
    assert str(found[0]) == "1x384 at 50%"
    assert found[0].settings == {"student.layers": 1, "student.scale": 0.5}


def test_shapes_are_measured_again_where_what_is_known_does_not_tell(monkeypatch, tmp_path):
    small, large = Shape(1, 8, 1), Shape(2, 8, 1)
    costs, measured = {small: (100, 1.0), large: (900, 3.0)}, []

    def measure(spec, shapes, budget):
        measured.append(budget)
        times = {s: None if budget.too_large(w) else t for s, (w, t) in costs.items()}
        return 4.0, [MeasuredShape(s, costs[s][0], times[s], "") for s in shapes]

    monkeypatch.setattr(shapes, "measure_shapes", measure)

    def find(*limits, threads=1):
        budget = Budget.read(*limits, None)
        return shapes.shapes_of_search(tmp_path, None, [small, large], budget, threads)

    find(None, None, "500")
    teacher, (first, second) = find("0.1x", None, "500")
    assert (teacher, len(measured)) == (4.0, 1)
    assert (first.reason, first.milliseconds) == ("1.00 ms; 0.40 ms are allowed", 1.0)
    assert second.reason == "900 weights; 500 are allowed"
    find("0.5x", None, None)  # the large one was not timed
    assert len(measured) == 2
    _, (first, second) = find("0.5x", None, None)
    assert (first.reason, second.reason) == ("", "3.00 ms; 2.00 ms are allowed")
    find("0.5x", None, None, threads=2)
    assert len(measured) == 3


@pytest.fixture
def arguments(world):
    return [
        *("search", "--teacher", world / "teacher", "--data", world / "train.jsonl"),
        *("--set", f"task.validation={world / 'validation.jsonl'}"),
        *("--set", f"task.test={world / 'test.jsonl'}", "--set", "task.max_length=32"),
        *("--set", "training.batch_size=16", "--set", "training.epochs=1"),
        *("--method", "kd", "--method", "hard", "--output", "found"),
    ]


def without_hard(arguments):
    (at,) = (place for place, given in enumerate(arguments) if given == "hard")
    return arguments[: at - 1] + arguments[at + 1 :]


def test_the_best_student_within_the_budget_is_found(
    arguments, invoke, pretend, tmp_path, monkeypatch
):
    pytest.importorskip("optuna")
    done = invoke(*arguments, "--max-weights", "20k", "--time", "14s", "--seeds", 2)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "found/report/search.json").read_text())
    assert report["axes"]["method"] == "kd"
    assert report["axes"]["student.init"] == "last"
    assert report["against_labels"]["verdict"] == "better"
    missed = [each for each in report["shapes"] if each["reason"]]
    assert missed
    fitting = [each for each in report["shapes"] if not each["reason"]]
    largest = max(fitting, key=lambda each: each["weights"])["shape"]
    shape = f"{largest['layers']}x{largest['hidden_size']}"
    begun = [(each["shape"], each["method"]) for each in report["tried"][:2]]
    assert begun == [(shape, "kd"), (shape, "hard")]
    assert all("weights; 20,000 are allowed" in each["reason"] for each in missed)
    allowed = {f"{s['shape']['layers']}x{s['shape']['hidden_size']}" for s in report["shapes"]}
    allowed -= {f"{s['shape']['layers']}x{s['shape']['hidden_size']}" for s in missed}
    assert {each["shape"] for each in report["tried"]} <= allowed
    reasons = {each[""]: each["state"] for each in report["tried"]}
    assert any("in the lower half of those so far" in why for why in reasons)
    assert all((state == "stopped") == ("lower half" in why) for why, state in reasons.items())
    assert reasons["labels alone, to compare the best with"] == "finished"
    assert "distillation pays: better than labels alone" in " ".join(done.out.split())
    assert (tmp_path / "found/report/search.html").exists()

    finished = {run.parent.name for run in tmp_path.glob("found/cells/*/report.html")}
    before = len(pretend.started)
    counts, measure, costs = [], shapes.measure_shapes, []
    monkeypatch.setattr(
        shapes, "measure_shapes", lambda *a: counts.append(len(a[1])) or measure(*a)
    )
    monkeypatch.setattr(
        shapes, "measure_student", lambda *a: costs.append(a[2]) or untrained_cost(*a)
    )
    again = invoke(*arguments, "--max-weights", "20k", "--time", "4s", "--seeds", 2)
    assert again.code == 0, again.err
    assert len(pretend.started) > before
    assert not finished & set(pretend.started[before:])
    assert counts == [1], "what shapes cost is known"
    (trained,) = costs
    report = json.loads((tmp_path / "found/report/search.json").read_text())
    assert str(trained) == report["student"], "the trained student is timed at the end"


def test_labels_alone_are_the_result_where_they_are_better(
    arguments, invoke, pretend, tmp_path, monkeypatch
):
    pytest.importorskip("optuna")
    monkeypatch.setitem(QUALITIES, "kd", 0.7)
    monkeypatch.setitem(QUALITIES, "hard", 0.9)
    done = invoke(*without_hard(arguments), "--max-weights", "20k", "--time", "1s")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "found/report/search.json").read_text())
    assert report["axes"]["method"] == "hard"
    assert report["against_labels"]["verdict"] == "worse"
    assert (tmp_path / report["student"]).parent.is_dir()
    said = " ".join(done.out.split())
    assert "labels alone are better on validation rows than shape=" in said
    assert "on the others, distillation does not pay: worse than labels alone" in said


@pytest.fixture
def unlabeled(arguments, world, tmp_path):
    """The arguments without methods, for rows to train on that have no labels."""
    rows = map(json.loads, (world / "train.jsonl").read_text().splitlines())
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    return [path if each == world / "train.jsonl" else each for each in without_methods(arguments)]


def without_methods(arguments):
    left = without_hard(arguments)
    at = left.index("--method")
    return left[:at] + left[at + 2 :]


def test_rows_without_labels_are_searched_without_labels(
    unlabeled, invoke, pretend, tmp_path, monkeypatch
):
    pytest.importorskip("optuna")
    for method, quality in (("pkd+soft", 0.8), ("soft", 0.9)):
        monkeypatch.setitem(QUALITIES, method, quality)
    done = invoke(*unlabeled, "--max-weights", "20k", "--time", "4s")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "found/report/search.json").read_text())
    assert report["axes"]["method"] == "soft"
    *tried, labels = report["tried"]
    assert {each["method"] for each in tried} == {"pkd+soft", "soft"}
    assert (labels["method"], labels["state"]) == ("hard", "refused")
    said = report["sentences"][-1]
    assert said.startswith("not compared with labels alone: ")
    assert "hard needs labels, but" in said


def test_search_ends_when_every_candidate_is_refused(unlabeled, invoke, pretend):
    pytest.importorskip("optuna")
    done = invoke(*unlabeled, "--method", "kd", "--max-weights", "20k", "--time", "1h")
    assert done.code == 2
    assert not pretend.started
    said = " ".join(done.err.split())
    assert "no candidate could be trained: " in said
    assert "kd needs labels, but" in said


def test_evaluations_are_those_of_the_last_stage_of_a_recipe(tmp_path):
    recipe = SearchedRecipe("takd", {"assistant": 9, "student": 40})
    assert (str(recipe), recipe.last_stage) == ("recipe takd", "student")
    assert recipe.settings == {
        "recipe": "takd",
        "stages.assistant.training.evaluate_every": 3,
        "stages.student.training.evaluate_every": 10,
    }
    one = SearchedRecipe("kd", {"distil": 8})
    assert one.settings == {"recipe": "kd", "training.evaluate_every": 2}
    entries = [("assistant", 3, 0.2), ("student", 10, 0.5), ("student", 20, 0.6)]
    lines = (
        json.dumps({"stage": stage, "step": step, "validation/accuracy": value}) + "\n"
        for stage, step, value in [*entries, ("student", 20, 0.7)]  # resumed after the last one
    )
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert search_module.evaluations(tmp_path, "student", "accuracy") == [0.5, 0.7]


@pytest.mark.exhaustive
def test_recipes_are_judged_in_their_last_stage(arguments, invoke, pretend, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setitem(QUALITIES, "recipe takd", 0.99)
    begin = pretend.start.__func__

    def start(cls, folder, cell, threads):
        run = begin(cls, folder, cell, threads)
        if cell.axes["method"] == "recipe takd" and cls.started.count(cell.name) == 1:
            directory = folder.run_directory(cell)
            directory.mkdir(parents=True, exist_ok=True)
            first = {"stage": "assistant-1", "step": 4, "validation/accuracy": 0.0}
            (directory / "metrics.jsonl").write_text(json.dumps(first) + "\n")
        return run

    monkeypatch.setattr(pretend, "start", classmethod(start))
    monkeypatch.setattr(pretend, "stage_of", staticmethod(last_stage))
    some = [*arguments, "--recipe", "takd", "--max-weights", "20k", "--time", "12s"]
    done = invoke(*some)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "found/report/search.json").read_text())
    assert report["axes"]["method"] == "recipe takd"
    assert {each["method"] for each in report["tried"]} == {"recipe takd", "kd", "hard"}
    assert not any(
        each["method"] == "recipe takd" and each["state"] == "stopped" for each in report["tried"]
    ), "an evaluation of the assistant, at 0, is none of the student"
    study = tomllib.loads((tmp_path / "found/study.toml").read_text())
    assert study["values"]["method"]["recipe takd"] == {
        "recipe": "takd",
        "stages.assistant-1.training.evaluate_every": 2,
        "stages.student.training.evaluate_every": 2,
    }
    refused = invoke(*arguments, "--recipe", "tinybert", "--max-weights", "20k")
    assert refused.code == 2
    assert "--recipe tinybert: stages.general.teacher.model" in " ".join(refused.err.split())


def test_slices_are_candidates_of_autodisc_only(arguments, invoke, pretend, tmp_path, monkeypatch):
    """What a slice costs is known when it is trained: the first one is refused."""
    pytest.importorskip("optuna")
    monkeypatch.setitem(QUALITIES, "recipe autodisc", 0.99)
    monkeypatch.setattr(pretend, "stage_of", staticmethod(last_stage))
    monkeypatch.setattr(pretend, "quality_of", staticmethod(lambda c: QUALITIES[c.axes["method"]]))
    measured = []

    def measure(spec, shape, student, budget):
        measured.append((spec, shape, student))
        reason = "20,001 weights; 20,000 are allowed" if len(measured) == 1 else ""
        return 2.0, MeasuredShape(shape, 12_345, 1.0, reason)

    monkeypatch.setattr(shapes, "measure_student", measure)
    some = without_hard([*arguments, "--recipe", "autodisc"])
    done = invoke(*some, "--max-weights", "20k", "--time", "12s")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "found/report/search.json").read_text())
    tried = report["tried"]
    assert all((" at " in t["shape"]) == (t["method"] == "recipe autodisc") for t in tried[:-1])
    assert {each["method"] for each in tried} == {"kd", "recipe autodisc", "hard"}
    (refused,) = (each for each in tried if each["state"] == "refused")
    assert refused[""] == "its student has 20,001 weights; 20,000 are allowed"
    assert report["axes"]["method"] == "recipe autodisc"
    assert measured[0][2] != measured[-1][2], "the best one is measured at the end"
    assert "0.0123 M weights" in " ".join(done.out.split())
    slices = [each for each in report["shapes"] if each["shape"]["scale"]]
    assert any(each["reason"] for each in slices)
    config = next((tmp_path / "found/configs").glob(f"{measured[0][2].parent.name}.toml"))
    assistants, student = tomllib.loads(config.read_text())["stages"]
    scale = measured[0][1].scale
    assert (assistants["autodisc"]["target"], student["student"]["scale"]) == (scale, scale)
    assert assistants["student"]["layers"] == student["student"]["layers"] == measured[0][1].layers
    assert assistants["student"]["scale"] == 1
    assert (tried[-1]["method"], tried[-1]["validation"]) == ("hard", "0.6000")
    assert tried[-1][""] == "labels alone, to compare the best with"
    labels = next((tmp_path / "found/configs").glob(f"{labels_alone(tmp_path)}.toml"))
    assert tomllib.loads(labels.read_text())["student"]["scale"] == measured[-1][1].scale


@pytest.mark.parametrize("killed", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_slice_that_was_finished_unseen_is_judged_when_the_search_goes_on(
    killed, arguments, invoke, pretend, tmp_path, monkeypatch
):
    """The search is killed before it measures a slice; or else the budget has changed since."""
    pytest.importorskip("optuna")
    monkeypatch.setitem(QUALITIES, "recipe autodisc", 0.99)
    monkeypatch.setattr(pretend, "stage_of", staticmethod(last_stage))
    measured = []

    def measure(spec, shape, student, budget):
        measured.append(student)
        if killed and len(measured) == 1:
            raise ConfigError("killed")
        return 2.0, MeasuredShape(shape, 19_999, 1.0, budget.too_large(19_999))

    monkeypatch.setattr(shapes, "measure_student", measure)
    some = without_hard([*arguments, "--recipe", "autodisc"])
    first = invoke(*some, "--max-weights", "20k", "--time", "2s")
    assert first.code == (2 if killed else 0), first.err
    assert pretend.started
    again = invoke(*some, "--max-weights", "19k", "--time", "9s")
    assert again.code == 0, again.err
    tried = json.loads((tmp_path / "found/report/search.json").read_text())["tried"]
    refused = {each[""] for each in tried if each["state"] == "refused"}
    assert refused == {"its student has 19,999 weights; 19,000 are allowed"}
    assert not any(t["method"] == "recipe autodisc" and t["state"] == "finished" for t in tried)


def labels_alone(folder):
    cells = json.loads((folder / "found/cells.json").read_text())["cells"]
    return next(cell["name"] for cell, _ in cells if cell["axes"]["method"] == "hard")


def test_trained_slice_costs_what_was_measured(world, tmp_path, monkeypatch):
    from gkd_core.models.load import load_teacher

    given = {"teacher": str(world / "teacher"), "task.train": str(world / "train.jsonl")}
    shared = given | {"task.max_length": 32, "method": "kd", "baseline": False}
    (spec,) = import_module("gkd_core.cli.search")._stages(shared)
    budget = Budget.read(None, None, "20k", None)
    chosen = [Shape(2, 32, 4, 0.5), Shape(2, 32, 4, 0.1)]
    _, (larger, smaller) = shapes.measure_shapes(spec, chosen, budget)
    assert smaller.weights < larger.weights
    loaded = load_teacher(str(world / "teacher"), spec.kind, spec.data.classes, False, "test")
    TeacherSlices(spec, loaded).cut(2, 0.1).save_pretrained(tmp_path / "student")
    _, again = shapes.measure_student(spec, chosen[1], tmp_path / "student", budget)
    assert (again.weights, again.reason) == (smaller.weights, "")
    assert shapes.measure_slice(spec, chosen[1], tmp_path / "student", budget, 1).reason == ""
    tight = Budget.read(None, None, str(again.weights - 1), None)
    monkeypatch.delattr(shapes, "measure_student")  # what was measured is known
    missed = shapes.measure_slice(spec, chosen[1], tmp_path / "student", tight, 1)
    assert missed.reason == f"{again.weights:,} weights; {again.weights - 1:,} are allowed"


def last_stage(cell):
    return "student" if cell.axes["method"].startswith("recipe ") else "distil"


@pytest.mark.exhaustive
def test_candidate_that_was_stopped_goes_on_when_worse_ones_have_come(
    arguments, invoke, pretend, tmp_path, monkeypatch
):
    pytest.importorskip("optuna")

    def worse_and_worse(cell):
        return 0.9 - 0.02 * list(dict.fromkeys(pretend.started)).index(cell.name)

    monkeypatch.setattr(pretend, "quality_of", staticmethod(worse_and_worse))
    done = invoke(*without_hard(arguments), "--max-weights", "20k", "--time", "5s")
    assert done.code == 0, done.err
    first, second, third, fourth, again = pretend.started[:5]
    assert len({first, second, third, fourth}) == 4
    assert again == second  # of four, it is in the better half
    entries = (tmp_path / f"found/cells/{second}/metrics.jsonl").read_text().splitlines()
    assert [json.loads(entry)["step"] for entry in entries] == [2, 4]  # the same run went on
    tried = json.loads((tmp_path / "found/report/search.json").read_text())["tried"]
    assert sum("stopped at evaluation 2" in each[""] for each in tried) == 1


def test_search_that_is_asked_to_stop_stops_its_candidate_and_can_go_on(
    arguments, invoke, pretend, tmp_path, monkeypatch
):
    pytest.importorskip("optuna")
    stock = pretend.is_over

    def is_over(run):
        signal.raise_signal(signal.SIGTERM)
        return stock.fget(run)

    limits = ("--max-weights", "20k", "--time", "2s")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(pretend, "is_over", property(is_over))
        stopped = invoke(*arguments, *limits)
    assert stopped.code == 75
    assert "stopped; repeat the command to continue" in stopped.err
    (attempt,) = (Attempt.load(path) for path in tmp_path.glob("found/attempts/*.json"))
    assert attempt.status == 75
    first = pretend.started[0]
    assert invoke(*arguments, *limits).code == 0
    assert pretend.started[1] == first


def test_rungs_let_the_better_half_pass():
    rungs = Rungs(evaluations=4, rising=True)
    assert rungs.stopped_at([0.1], []) is None
    assert rungs.stopped_at([0.5], [[0.6]]) == 1
    assert rungs.stopped_at([0.5], [[0.6], [0.4], [0.3]]) is None  # promoted
    assert rungs.stopped_at([0.5, 0.1], [[0.6, 0.2], [0.4], [0.3]]) == 2
    assert rungs.stopped_at([0.5, 0.2, 0.1], [[0.4, 0.1, 0.9]]) is None  # no rung at the third
    assert Rungs(4, rising=False).stopped_at([0.5], [[0.6]]) is None
    assert rungs.stopped_at([math.nan], [[0.6]]) == 1
    assert Rungs(1, rising=True).stopped_at([0.5], [[0.6]]) is None  # nothing is saved at the end


def test_impossible_budgets_and_missing_teachers_are_refused(arguments, invoke, pretend):
    done = invoke(*arguments, "--max-weights", 10)
    assert done.code == 2
    assert "no shape is within the budget" in " ".join(done.err.split())
    done = invoke("search", "--max-latency", "5ms")
    assert "a search needs a teacher that is trained already" in " ".join(done.err.split())
