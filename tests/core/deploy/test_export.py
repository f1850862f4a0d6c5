"""`gkd export`: what is written, what verification rejects, and that nothing is lost."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gkd_core.config.schema import TaskConfig, TeacherConfig
from gkd_core.deploy import export as exporting
from gkd_core.deploy.card import _data, _taught_by
from gkd_core.deploy.lineage import _teacher
from gkd_core.deploy.onnx_model import OnnxModel
from gkd_core.deploy.verification import differing_continuations
from gkd_core.lease import hold


def _everything(folder):
    """The files beside a run's export, with their content."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def exported(invoke, finished, tmp_path):
    """The directory of an export as a Hugging Face directory, and what was printed."""
    done = invoke("export", finished, "--to", "out", "--license", "apache-2.0")
    assert done.code == 0, done.err
    return tmp_path / "out", done


def test_export_is_the_student_with_a_card_and_lineage(exported, finished, world):
    from transformers import AutoModelForSequenceClassification

    place, done = exported
    assert "rows        40 test, the same predictions" in done.out
    known = json.loads((place / "lineage.json").read_text())
    for name, file in known["export"]["files"].items():
        assert hashlib.sha256((place / name).read_bytes()).hexdigest() == file["sha256"]
    assert known["student"]["classes"] == ["neg", "pos"]
    assert known["teachers"] == {"teacher": {"model": "teacher", "origin": "directory"}}
    content = known["made_from"]["distil"]["content"]
    assert "SHA-256" in content["teacher.model: model.safetensors"]
    card = (place / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "Hinton, Vinyals, Dean, 2015" in card
    for private in (finished.parent, world):
        assert not [path for path in place.iterdir() if str(private).encode() in path.read_bytes()]
    loaded = AutoModelForSequenceClassification.from_pretrained(place)
    assert loaded.config.id2label == {0: "neg", 1: "pos"}


def test_card_tells_what_was_made_of_what_and_how_to_load_it(exported, finished, monkeypatch):
    place, done = exported
    card = (place / "README.md").read_text()
    assert "This is a BERT model" in card
    assert re.search("distilled by `.*` from `teacher`. Made with gkd", card)
    results = json.loads((finished / "results.json").read_text())
    for row in results["rows"]:
        low, high = row["interval"]["low"], row["interval"]["high"]
        assert low <= row["metrics"]["accuracy"] <= high
        accuracy = f"{row['metrics']['accuracy']:.4f} | {low:.4f} to {high:.4f} "
        assert f"| {row['name']} | {accuracy}| {row['kept']:.1%} | {row['agreement']:.1%} |" in card
    steps = json.loads((finished / "stages" / "distil" / "done.json").read_text())["steps"]
    assert re.search(
        rf"- distil: `.*`, {steps} steps, epochs 1, batch size \d+, lr \S+, seed", card
    )
    assert re.search(r"- source: .*train.jsonl", card)
    assert re.search(r"- training rows: \d+", card)
    assert "; 95% interval of the difference +0.0000 to +0.0000" in done.out
    _run_code_of_card(place, monkeypatch)


def _run_code_of_card(place, monkeypatch):
    """Run the code of a model card in its folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (place / "README.md").read_text(), re.DOTALL)
    with monkeypatch.context() as patch:
        patch.chdir(place)
        exec(compile(code, "README.md", "exec"), {})


def test_teachers_are_named_so_that_a_reader_knows_them(tmp_path, monkeypatch):
    run = tmp_path / "runs" / "teacher"
    (run / "student").mkdir(parents=True)
    (run / "stages").mkdir()
    (run / "config.toml").touch()
    monkeypatch.chdir(tmp_path)
    content = {"teacher.model": "google/bert 86b5e0934494bd15c9632b12f734a8a67f723594"}

    def named(**settings):
        found = _teacher(TeacherConfig(**settings), TaskConfig(), content)
        return found["origin"], _taught_by(found)

    assert named(model="runs/teacher/student") == ("directory", "`teacher/student`")
    assert named(model="google/bert") == ("hub", "`google/bert`")
    assert named(model="runs/gone/student") == ("directory", "`student`")
    assert named(model="stage:first") == ("stage", "the student of stage `first`")
    assert named() == (
        "task",
        "the default teacher of the task (embedded, large), which gkd trains on its labels",
    )


def test_rejected_export_leaves_the_one_that_was_there(invoke, finished, exported, monkeypatch):
    place, _ = exported
    before = _everything(place.parent)

    def reject(*arguments, real=exporting.verify):
        return replace(real(*arguments), problems=("2 predictions differ on 40 rows",))

    monkeypatch.setattr(exporting, "verify", reject)
    done = invoke("export", finished, "--to", "out")
    assert done.code == 2
    assert "2 predictions differ on 40 rows. Keep it anyway with --accept" in done.err
    assert _everything(place.parent) == before
    done = invoke("export", finished, "--to", "out", "--accept")
    assert done.code == 0
    assert "accepted    2 predictions differ on 40 rows" in done.out
    assert "kept although 2 predictions differ" in (place / "README.md").read_text()


def test_interrupted_export_leaves_no_trace(invoke, finished, monkeypatch, tmp_path):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "verify", interrupt)
    assert invoke("export", finished, "--to", "new").code != 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_gone_after_the_next(invoke, finished, tmp_path):
    left = tmp_path / ".out.tmp"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half of a graph")
    assert invoke("export", finished, "--to", "out").code == 0
    assert not left.exists()
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_what_is_no_export_is_not_replaced(invoke, finished, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    done = invoke("export", finished, "--to", "mine")
    assert done.code == 2
    assert "--to mine already exists and is not an export" in done.err
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_a_link_stays_and_what_it_points_to_is_replaced(invoke, finished, tmp_path):
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        done = invoke("export", finished, "--to", "link", "--rows", 8)
        assert done.code == 0, done.err
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "lineage.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"link", "real"}


def test_a_mount_point_is_refused_before_anything_is_done(invoke, finished, tmp_path, monkeypatch):
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "volume")
    done = invoke("export", finished, "--to", "volume")
    assert done.code == 2
    assert "--to volume is a mount point, which cannot be replaced" in done.err


def test_an_opset_that_is_not_out_yet_is_refused(invoke, finished):
    done = invoke("export", finished, "--to", "out", "--format", "onnx", "--opset", 999)
    assert done.code == 2
    assert "--opset 999 is no version of the ONNX operators: onnx" in done.err


def test_labels_cannot_be_markup_of_a_card():
    lines = _data(
        {
            "task": dict.fromkeys(("name", "kind", "train", "validation", "test")),
            "data": dict.fromkeys(("source", "training", "validation")),
            "student": {"classes": ["<img src=x>", "a|`b\n# Head"]},
        }
    )
    assert lines.endswith(r"- labels: \<img src=x\>, a\|\`b \# Head")


def test_an_export_with_something_else_in_it_is_not_replaced(invoke, finished, tmp_path):
    for _ in range(2):  # an export alone is replaced
        assert invoke("export", finished, "--to", "out", "--rows", 8).code == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    done = invoke("export", finished, "--to", "out")
    assert done.code == 2
    assert "--to out has notes.txt, which does not belong to the export" in done.err
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_run_that_is_not_there_is_named(invoke):
    done = invoke("export", "runs/nowhere", "--to", "out")
    assert done.code == 2
    assert "there is no run runs/nowhere: the directory does not exist" in done.err


def test_a_damaged_student_is_called_what_it_is(invoke, finished, tmp_path):
    student = shutil.copytree(finished, tmp_path / "run") / "student"
    weights = student / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    exported = invoke("export", "run", "--to", "out")
    evaluated = invoke("eval", "run/student")
    assert (exported.code, evaluated.code) == (2, 2)
    assert "the student of the run = 'run/student' cannot be loaded" in exported.err
    assert "the model to evaluate = 'run/student' cannot be loaded" in evaluated.err
    assert "teacher.model" not in exported.err + evaluated.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--quantize", "int8"], "--quantize needs --format onnx"),
        (["--opset", "18"], "--opset needs --format onnx"),
    ],
)
def test_options_of_onnx_need_its_format(invoke, finished, arguments, said):
    done = invoke("export", finished, "--to", "out", *arguments)
    assert (done.code, said in done.err) == (2, True)


def test_int8_graph_answers_as_the_student_within_its_precision(
    invoke, finished, tmp_path, world, monkeypatch
):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    flags = ("--format", "onnx", "--quantize", "int8", "--accept")
    done = invoke("export", finished, "--to", "out", *flags)
    assert done.code == 0, done.err
    place = tmp_path / "out"
    known = json.loads((place / "lineage.json").read_text())
    assert known["export"]["opset"] >= 18
    assert known["export"]["quantization"] == "int8, dynamic, per channel"
    assert known["verification"]["weak"].startswith("40 rows are few")
    files = [path for path in place.iterdir() if str(world).encode() in path.read_bytes()]
    assert files == []
    inputs = AutoTokenizer.from_pretrained(place)(
        ["the movie was good", "bad"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        student = AutoModelForSequenceClassification.from_pretrained(finished / "student").eval()
        expected = student(**inputs).logits.numpy()
    found = OnnxModel(place / "model.onnx")(**inputs).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=0.5)
    assert not np.array_equal(found, expected)
    _run_code_of_card(place, monkeypatch)
    _check_documented_ways(invoke, finished, place, tmp_path)


def _check_documented_ways(invoke, finished, place, folder):
    """Run the Python blocks of the how-to page."""
    place.rename(folder / "phone")
    assert invoke("export", finished, "--to", "student").code == 0
    page = Path("docs/how-to/export-a-student.md")
    text = (Path(__file__).parents[3] / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, str(page), "exec"), {})


class Rows:
    """One text."""

    def __len__(self):
        return 1

    def row(self, number):
        return {"input_ids": np.arange(5, 15)}


class Graph:
    """A graph that computes what a model does."""

    def __init__(self, model):
        self.model = model

    @torch.no_grad()
    def continue_greedily(self, ids, count):
        for _ in range(count):
            ids = torch.cat([ids, self.model(ids).logits[:, -1:].argmax(-1)], 1)
        return ids


def test_a_penalty_of_the_student_is_no_difference_to_its_graph(world):
    model = AutoModelForCausalLM.from_pretrained(world / "lm-decoder").eval()
    model.generation_config.repetition_penalty = 5.0
    rows = SimpleNamespace(encoded=Rows())
    assert differing_continuations(model, Graph(model), rows, 32) == 0


def test_report_of_a_run_has_no_paths_of_the_machine(finished, world):
    page = (finished / "report.html").read_text()
    assert not [place for place in (world, finished.parent) if str(place) in page]
    assert "train.jsonl" in page


def test_what_killed_exports_left_is_put_back_or_removed(invoke, finished, exported, monkeypatch):
    place, _ = exported
    before = _everything(place)
    place.rename(place.with_name(".out.old"))  # killed between two renames
    (place.parent / ".out.tmp").mkdir()
    (place.parent / ".out.tmp" / "model.safetensors").write_bytes(b"half")

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "verify", interrupt)
        assert invoke("export", finished, "--to", "out").code != 0
    assert _everything(place) == before
    assert [path.name for path in place.parent.iterdir()] == ["out"]


def test_export_that_another_process_writes_is_refused(invoke, finished, tmp_path):
    with hold(tmp_path / "out"):
        done = invoke("export", finished, "--to", "out")
    assert done.code == 2
    assert f"out is being written by process {os.getpid()} on " in done.err
    assert "choose another directory with --to" in done.err
    assert list(tmp_path.iterdir()) == []
