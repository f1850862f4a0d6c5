"""Labels of rows against outputs of models: names, order, classes that only one side has."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from gkd_core.config.schema import StudentConfig
from gkd_core.plugins import registry
from gkd_core.students.shape import student_config


def rows(path, labels, column="label"):
    """Write a row per label; the texts differ in their words."""
    words = ["good", "bad", "very", "film", "plot", "sad", "happy", "dark"]
    texts = [f"{words[n % 8]} {words[n // 8 % 8]} movie" for n in range(len(labels))]
    lines = [json.dumps({"text": t, column: x}) for t, x in zip(texts, labels, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def teacher(world, tmp_path):
    """`teacher(names, **settings)`: the BERT of the world with other names of its outputs."""

    def _teacher(names=None, **settings):
        folder = tmp_path / f"teacher-{len(list(tmp_path.glob('teacher-*')))}"
        shutil.copytree(world / "teacher", folder)
        config = json.loads((folder / "config.json").read_text())
        if names is None:
            del config["id2label"], config["label2id"]
        else:
            config["id2label"] = dict(enumerate(names))
            config["label2id"] = {name: index for index, name in enumerate(names)}
            if len(names) != 2:
                _resize(folder, len(names))
        (folder / "config.json").write_text(json.dumps(config | settings))
        return folder

    return _teacher


def _resize(folder, count):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = torch.randn(count, *weights[name].shape[1:])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def explain(invoke):
    """`explain(teacher, data, *settings)` -> Outcome, with the output on one line."""

    def _explain(model, data, *settings):
        flags = [part for setting in settings for part in ("--set", setting)]
        given = ("--teacher", model, "--student-layers", "half", "--data", data, "--no-baseline")
        return invoke("explain", "soft", *given, "--json", *flags)

    return _explain


def notes(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)["stages"][0]["notes"]


def student_names(invoke, model, data, *flags):
    """Return the names of the outputs of a student trained for a step, and what was said."""
    out = data.parent / f"run-{data.stem}"
    done = invoke(
        *("run", "--teacher", model, "--student-layers", 1, "--data", data, "--output", out),
        *("--set", "training.steps=1", "--set", "output.tensorboard=false", "--no-baseline"),
        *flags,
    )
    assert done.code == 0, done.err
    config = json.loads((out / "student" / "config.json").read_text())
    names = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
    assert config["label2id"] == {name: index for index, name in enumerate(names)}
    return names, (out / "log.txt").read_text()


def opposite(model, path):
    """Write rows whose labels are what a model does not predict, so that it is always wrong."""
    data = rows(path, ["x"] * 40)
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    loaded = AutoModelForSequenceClassification.from_pretrained(model).eval()
    inputs = AutoTokenizer.from_pretrained(model)(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = loaded(**inputs).logits
        apart = (logits[:, 1] - logits[:, 0]).sort().values
        loaded.classifier.bias[0] += apart[19:21].mean()  # half of the rows are of either class
    loaded.save_pretrained(model)
    predicted = (logits[:, 1] - logits[:, 0] > apart[19:21].mean()).tolist()
    assert sum(predicted) == 20
    return rows(path, [["pos", "neg"][index] for index in predicted])


def test_a_teacher_with_outputs_in_another_order_is_told_from_a_good_one(invoke, teacher, tmp_path):
    unnamed = teacher()
    data = opposite(unnamed, tmp_path / "rows.jsonl")
    names, log = student_names(invoke, unnamed, data, "--method", "soft")
    assert names == ["neg", "pos"]
    before, _, _ = log.partition("steps 1 to")
    assert "teacher.model does not name its outputs" in before
    assert "has accuracy 0.0000 on" in before
    order = 'task.classes=["pos", "neg"]'
    assert f"in another one 100.0% are right: --set '{order}'" in before
    names, log = student_names(
        invoke, unnamed, data, "--method", "soft", "--set", order, "--overwrite"
    )
    assert names == ["pos", "neg"]
    assert "warning" not in log
    assert "does not name" not in log


def test_rows_without_some_of_the_teachers_classes_are_learned_from(invoke, teacher, tmp_path):
    known = ("joy", "anger", "fear", "calm")
    some = rows(tmp_path / "some.jsonl", ["calm", "joy", "anger"] * 8)
    names, log = student_names(invoke, teacher(known), some, "--method", "soft+hard")
    assert names == list(known)
    assert "no row to train on has a label of [fear]" in log


@pytest.mark.parametrize("labels", [["joy"] * 6, ["fear", "joy"] * 3])
def test_a_model_is_evaluated_on_rows_without_some_of_its_classes(
    invoke, teacher, tmp_path, labels
):
    model = teacher(("fear", "joy", "anger"))
    done = invoke("eval", model, "--data", rows(tmp_path / "rows.jsonl", labels), "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["samples"] == 6


def test_validation_rows_may_have_classes_that_training_rows_lack(explain, teacher, tmp_path):
    train = rows(tmp_path / "train.jsonl", ["joy", "fear"] * 4)
    other = rows(tmp_path / "other.jsonl", ["anger", "joy"])
    model = teacher(("anger", "joy", "fear"))
    assert notes(explain(model, train, f"task.validation={other}"))
    strange = rows(tmp_path / "strange.jsonl", ["joy", "calm"])
    done = explain(model, train, f"task.validation={strange}")
    assert "strange.jsonl:2: label 'calm' never occurs in training" in done.err


def test_labels_that_count_get_the_names_of_the_teacher(invoke, teacher, tmp_path):
    data = rows(tmp_path / "rows.jsonl", [0, 1] * 8)
    names, log = student_names(invoke, teacher(("awful", "fine")), data, "--method", "soft")
    assert names == ["awful", "fine"]
    assert "the labels [0, 1] are taken as [awful, fine], as in teacher.model" in log


def test_labels_that_count_get_the_names_of_the_user(invoke, teacher, tmp_path):
    data = rows(tmp_path / "rows.jsonl", [0, 1] * 8)
    flags = ("--method", "soft", "--set", 'task.classes=["awful", "fine"]')
    names, log = student_names(invoke, teacher(), data, *flags)
    assert names == ["awful", "fine"]
    assert "the labels [0, 1] are taken as [awful, fine], as in task.classes" in log


def test_the_baseline_has_the_names_of_the_teacher_too(invoke, teacher, tmp_path):
    data = rows(tmp_path / "rows.jsonl", [0, 1] * 8)
    names, _ = student_names(
        invoke, teacher(("awful", "fine")), data, "--baseline", "--method=soft"
    )
    assert names == ["awful", "fine"]


@pytest.mark.parametrize(
    ("labels", "names", "classes", "message"),
    [
        (["a", "b"], None, '["a", "c"]', "also has the labels [b]. Add them"),
        (["a", "b"], ("a", "b"), '["b", "a"]', "names its outputs in the order [a, b]. Remove"),
        (["a", "b"], None, '["a"]', "task.classes"),
        ([0.5, 1.5], None, '["a", "b"]', "task.kind = 'regression' has no classes"),
        (["a", "b"], ("a", "c"), None, "has the classes [a, c], but the task has the classes"),
        ([0, 1, 2], ("a", "b"), None, "has the classes [a, b], but the task has the classes"),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    explain, teacher, tmp_path, labels, names, classes, message
):
    data = rows(tmp_path / "rows.jsonl", labels * 6)
    given = [] if classes is None else [f"task.classes={classes}"]
    done = explain(teacher(names), data, *given)
    assert done.code == 2
    assert message in " ".join(done.err.split())


def test_numbers_of_a_csv_are_the_classes_of_a_jsonl(explain, teacher, tmp_path):
    model, table = teacher(("bad", "good")), tmp_path / "floats.csv"
    table.write_text("text,label\n" + "".join(f"word {n},{n % 2}.0\n" for n in range(12)))
    whole = tmp_path / "ints.csv"
    whole.write_text("text,label\ngood,1\nbad,0\n")
    # In a jsonl, 1 and 1.0 are the class "1"; the same file was refused as a csv.
    told = notes(explain(model, table, f"task.validation={whole}"))
    assert told == ["the labels [0, 1] are taken as [bad, good], as in teacher.model"]


@pytest.mark.parametrize(
    ("names", "labels"),
    [(("False", "True"), [True, False]), (("true", "false"), ["True", "False"])],
)
def test_booleans_are_the_same_classes_in_every_spelling(explain, teacher, tmp_path, names, labels):
    data = rows(tmp_path / "rows.jsonl", labels * 6)
    done = explain(teacher(names), data)
    assert notes(done) == []
    assert json.loads(done.out)["stages"][0]["classes"] == list(names)


@pytest.mark.parametrize("kind", [None, "classification"])
def test_a_multi_label_teacher_is_not_taken_for_a_single_label_one(
    explain, teacher, tmp_path, kind
):
    model = teacher(("a", "b"), problem_type="multi_label_classification")
    data = rows(tmp_path / "rows.jsonl", ["a", "b"] * 6)
    done = explain(model, data, *([] if kind is None else [f"task.kind={kind}"]))
    if kind is None:
        assert json.loads(done.out)["stages"][0]["task"] == f"multi-label on {data}"
    else:
        assert "problem_type = 'multi_label_classification'" in done.err
        assert "Set task.kind=multi-label" in " ".join(done.err.split())


@pytest.mark.parametrize("labels", [[0, 1, 3], ["1.0", "2.0", "4.0"]])
def test_a_teacher_of_one_output_makes_whole_numbers_values(explain, teacher, tmp_path, labels):
    model = teacher(("score",))
    data = rows(tmp_path / "rows.jsonl", labels * 4)
    done = explain(model, data)
    assert json.loads(done.out)["stages"][0]["task"] == f"regression on {data}"
    done = explain(model, data, "task.kind=classification")
    assert "set task.kind=regression" in " ".join(done.err.split())


@pytest.mark.parametrize("name", registry().kinds)
def test_students_of_every_kind_keep_the_names_of_the_outputs(name):
    kind = registry().kind(name)
    names = {"regression": ("score",)}.get(name, ("first", "second"))
    ids = {name: index for index, name in enumerate(names)}
    teacher = AutoConfig.for_model("bert", id2label=dict(enumerate(names)), label2id=ids)
    config = student_config(StudentConfig(layers=1), teacher, kind, names)
    of_each_class = (kind.outputs(names) or len(names)) // len(names)
    assert config.id2label == dict(enumerate(names * of_each_class))
    assert config.label2id == ids
    assert config.problem_type == kind.problem_type
