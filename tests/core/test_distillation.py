"""`gkd_core.run`: places or loaded objects in, the student and its comparison out."""

from __future__ import annotations

import copy
import json
import signal
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gkd_core import run
from gkd_core.errors import ConfigError
from gkd_core.stop_signals import requested

SETTINGS = {
    "training.epochs": 1,
    "training.batch_size": 16,
    "task.max_length": 32,
    "output.reuse": False,
    "baseline": False,
}

pytestmark = pytest.mark.usefixtures("brief")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def loaded(world):
    """The teacher of the world with its tokenizer."""
    place = world / "teacher"
    model = AutoModelForSequenceClassification.from_pretrained(place)
    return model, AutoTokenizer.from_pretrained(place)


def rows(world, name="train"):
    lines = (world / f"{name}.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    classes = ClassLabel(names=["neg", "pos"])
    features = Features({"text": Value("string"), "label": classes})
    return Dataset.from_list(
        [{**row, "label": classes.str2int(row["label"])} for row in found], features
    )


@pytest.mark.slow
def test_places_and_loaded_objects_give_the_same_student(world, loaded, tmp_path):
    places = run(
        teacher=str(world / "teacher"),
        student=2,
        data=world / "train.jsonl",
        method="soft",
        settings=SETTINGS | {"task.validation": str(world / "validation.jsonl")},
    )
    assert [row.name for row in places.comparison.rows] == ["teacher", "student, soft"]
    assert places.directory == Path("runs/soft-1")
    assert places.report.exists()
    assert places.student.config.num_hidden_layers == 2
    assert all(weight.requires_grad for weight in places.student.parameters())
    data = {"train": rows(world), "validation": rows(world, "validation")}
    objects = run(teacher=loaded, student=2, data=data, method="soft", settings=SETTINGS)
    assert objects.directory == Path("runs/soft-2")
    assert (tmp_path / "runs" / "soft-2.inputs" / "data" / "train.parquet").exists()
    expected = places.student.state_dict()
    assert all(weight.equal(expected[n]) for n, weight in objects.student.state_dict().items())
    assert objects.tokenizer("a good film")["input_ids"][0] == 2


def test_a_directory_that_exists_is_left_alone(world, loaded, tmp_path):
    kept = tmp_path / "mine" / "config.toml"
    kept.parent.mkdir()
    kept.write_text("seed = 1\n")
    with pytest.raises(ConfigError, match="mine already exists"):
        run(teacher=loaded, data=rows(world), output="mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_is_given_twice_or_cannot_be_is_refused(world, loaded):
    teacher = str(world / "teacher")
    with pytest.raises(ConfigError, match="method is given twice, by method= and in settings"):
        run(method="soft", settings={"method": "pkd"})
    with pytest.raises(ConfigError, match=r"teacher is a .*BertForSequ.*teacher=\(model, token"):
        run(teacher=loaded[0])
    with pytest.raises(ConfigError, match=r"settings is \[1\], not a mapping of dotted names"):
        run(teacher=teacher, settings=[1])
    with pytest.raises(ConfigError, match="output is 5, not a path"):
        run(teacher=teacher, output=5)
    with pytest.raises(ConfigError, match="data is a list; give a file"):
        run(teacher=teacher, data=[{"text": "a"}])
    with pytest.raises(ConfigError, match="data has the splits train, valid; 'train' is needed"):
        run(teacher=teacher, data={"train": rows(world), "valid": rows(world)})
    with pytest.raises(ConfigError, match="trains in one process; use the command gkd run"):
        run(teacher=teacher, settings={"parallel.nproc": 2})
    with pytest.raises(ConfigError, match=r"got 'fast' \(settings\['training\.lr'\]\)"):
        run(teacher=teacher, settings={"training.lr": "fast"})


def test_an_interrupted_run_says_how_to_continue(world, monkeypatch):
    from gkd_core.training import loop

    stock = loop.train_step

    def interrupted(where, batches, step):
        if step.index == 1:
            signal.raise_signal(signal.SIGINT)
        return stock(where, batches, step)

    monkeypatch.setattr(loop, "train_step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(
            teacher=str(world / "teacher"),
            student=2,
            data=world / "train.jsonl",
            method="soft",
            output="stopped",
            settings=SETTINGS,
        )
    assert stopped.value.__notes__ == ["Continue with: gkd run --resume --output stopped"]
    assert signal.getsignal(signal.SIGINT) is before
    assert not requested(), "the next run of this process would stop after its first step"


def test_what_cannot_be_right_is_refused_and_leaves_nothing(world, loaded, tmp_path):
    model, tokenizer = loaded
    empty = rows(world).select([])
    larger = AutoTokenizer.from_pretrained(world / "teacher")
    larger.add_tokens([f"word{number}" for number in range(model.config.vocab_size)])
    nowhere = copy.deepcopy(model).to("meta")
    wrong = {
        r"data has no rows in 'train'": {"teacher": loaded, "data": empty},
        r"data has no rows in 'test'": {"data": {"train": rows(world), "test": empty}},
        r"give the tokenizer that the model was trained with": {"teacher": (model, larger)},
        r"teacher is a tuple; give a directory": {"teacher": (tokenizer, model)},
        r"teacher\['a'\] is a NoneType": {"teacher": {"a": None}},
        r"settings has the key 1, which is no dotted name": {"settings": {1: 2}},
        r"teacher has weights on the device 'meta'": {"teacher": (nowhere, tokenizer)},
        r"(?s)method": {"teacher": loaded, "data": rows(world), "method": "no-such-method"},
    }
    for said, arguments in wrong.items():
        given = {"teacher": str(world / "teacher"), "data": rows(world)} | arguments
        with pytest.raises(ConfigError, match=said):
            run(**given, output="mine")
        assert not list(tmp_path.glob("mine*")), said


def test_without_a_teacher_rows_of_ones_own_say_what_is_missing(world, tmp_path):
    with pytest.raises(ConfigError, match="teacher"):
        run(teacher=None, data=rows(world), method="soft", output="mine")
    assert not list(tmp_path.glob("mine*"))
