"""Every mistake a person makes ends in one clear message, status 2, and nothing touched."""

import json
import shutil

import pytest

QUICK = ["--set", "task.max_length=32", "--set", "training.epochs=1", "--no-baseline"]
DIRECTORY = "finished"


@pytest.fixture(scope="session")
def models(world, tmp_path_factory):
    """Directories of models that do not suit the world: each is wrong in one way."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("models")

    def copy(name, source="teacher"):
        return shutil.copytree(world / source, folder / name)

    def tokenizer(name, **changes):
        AutoTokenizer.from_pretrained(world / "teacher", **changes).save_pretrained(folder / name)

    copy("other-classes")
    config = json.loads((world / "teacher/config.json").read_text())
    config |= {"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0, "dog": 1}}
    (folder / "other-classes/config.json").write_text(json.dumps(config))

    weights = copy("pickle") / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))

    weights = copy("damaged") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])

    (copy("no-weights") / "model.safetensors").unlink()

    copy("other-tokenizer")
    swapped = json.loads((world / "teacher/tokenizer.json").read_text())
    words = swapped["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    (folder / "other-tokenizer/tokenizer.json").write_text(json.dumps(swapped))

    copy("no-mask", "lm-teacher")
    tokenizer("no-mask", mask_token=None)

    torch.manual_seed(0)
    narrow = BertConfig.from_pretrained(world / "teacher", hidden_size=16)
    BertForSequenceClassification(narrow).save_pretrained(folder / "narrow")
    tokenizer("narrow")
    return folder


@pytest.fixture
def place(world, models, tmp_path, monkeypatch):
    """Where a mistake is made: an empty folder with a finished run in it."""
    run = tmp_path / DIRECTORY
    (run / "student").mkdir(parents=True)
    (run / "config.toml").write_text('method = "soft"\n')
    (run / "student/model.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    return Mistake(world, models, tmp_path)


class Mistake:
    def __init__(self, world, models, folder):
        self.world, self.models, self.folder = world, models, folder

    def write(self, name, text):
        (self.folder / name).write_text(text)
        return name

    def rows(self, *rows, name="rows.jsonl"):
        return self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def run(self, *extra, teacher="teacher", data=None, layers=("--student-layers", 2)):
        """A good run that replaces the finished one, and what is wrong with it."""
        model = ["--teacher", self.world / teacher] if isinstance(teacher, str) else teacher
        data = ["--data", data or self.world / "train.jsonl"]
        replace = ["--output", DIRECTORY, "--overwrite"]
        return ["run", *model, *layers, *data, *QUICK, *replace, *extra]

    def snapshot(self):
        return {
            str(path): path.read_bytes() if path.is_file() else None
            for folder in (self.folder, self.world, self.models)
            for path in folder.rglob("*")
        }


GOOD, BAD = {"text": "good film", "label": "pos"}, {"text": "bad film", "label": "neg"}

MISTAKES = {
    # the method
    "unknown method": (
        lambda p: p.run("--method", "sfot"),
        ["unknown method 'sfot'", "--method", "Did you mean 'soft'?", "gkd methods"],
    ),
    "unknown method in a sum": (
        lambda p: p.run("--method", "pkd+0.5*sfot"),
        ["'sfot'", "--method", "Did you mean 'soft'?", "\n    pkd+0.5*sfot\n            ^"],
    ),
    "method given twice": (
        lambda p: p.run("--method", "soft+pkd+soft"),
        ["'soft' occurs twice", "--method", "\n    soft+pkd+soft\n             ^"],
    ),
    "bad weight": (
        lambda p: p.run("--method", "2x*pkd+soft"),
        ["--method", "2x*pkd+soft\n", "^", "weight"],
    ),
    "negative weight": (
        lambda p: p.run("--method", "pkd+-1*soft"),
        ["--method", "-1", "negative", "^"],
    ),
    "layer out of range": (
        lambda p: p.run("--method", "pkd", "--set", "pkd.layers=[[1,9]]"),
        ["pkd.layers", "teacher block 9", "1 to 4", "--set"],
    ),
    "student of another width": (
        lambda p: p.run("--method", "pkd", "--set", "student.hidden_size=16"),
        ["pkd", "hidden size 16", "32"],
    ),
    # settings
    "unknown flag": (lambda p: p.run("--metod", "soft"), ["--metod", "--method"]),
    "unknown command": (lambda p: ["rnu"], ["'rnu'", "'run'"]),
    "wrong type": (
        lambda p: p.run("--set", "training.lr=fast"),
        ["training.lr", "a number", "'fast'", "--set"],
    ),
    "unknown setting": (
        lambda p: p.run("--set", "training.learning_rat=1"),
        ["training.learning_rat", "--set"],
    ),
    "no assignment": (lambda p: p.run("--set", "training.lr"), ["training.lr", "key=value"]),
    "misspelt key in a file": (
        lambda p: p.run(p.write("run.toml", "seed = 2\n[training]\nepcohs = 2\n")),
        ["training.epcohs", "run.toml:3", "'training.epochs'"],
    ),
    "syntax of a file": (
        lambda p: p.run(p.write("run.toml", "seed = 2\nmethod = soft\n")),
        ["run.toml:2"],
    ),
    "syntax of a YAML file": (
        lambda p: p.run(p.write("run.yaml", "seed: 2\ntraining: {lr: 1\n")),
        ["run.yaml:"],
    ),
    "unknown suffix of a file": (
        lambda p: p.run(p.write("run.ini", "[run]\n")),
        ["run.ini", ".toml", ".yaml", ".json"],
    ),
    "missing file of settings": (
        lambda p: (p.write("quick.toml", ""), p.run("qiuck.toml"))[1],
        ["qiuck.toml", "Did you mean 'quick.toml'?"],
    ),
    "unknown recipe": (lambda p: p.run("--recipe", "pdk"), ["unknown recipe 'pdk'", "--recipe"]),
    "unknown task": (
        lambda p: p.run("--set", "task.name=flies"),
        ["unknown task 'flies'", "--set", "'files'"],
    ),
    "accumulation": (
        lambda p: p.run("--set", "training.accumulation=5", "--set", "training.batch_size=16"),
        ["training.accumulation", "16", "5", "--set"],
    ),
    "checkpoint and shape": (
        lambda p: p.run("--student", p.world / "teacher"),
        ["student", "layers", "--student"],
    ),
    "no such device": (
        lambda p: p.run("--set", "parallel.device=cuda"),
        ["parallel.device", "cpu"],
    ),
    # models
    "student deeper than the teacher": (
        lambda p: p.run(layers=("--student-layers", 6)),
        ["student.layers", "6", "4"],
    ),
    "heads": (
        lambda p: p.run("--set", "student.heads=3"),
        ["student.heads", "3", "32"],
    ),
    "teacher's directory missing": (
        lambda p: p.run(teacher=["--teacher", p.world / "teachr"]),
        ["teacher.model", "teachr", "Did you mean 'teacher'?"],
    ),
    "hub offline": (
        lambda p: p.run(teacher=["--teacher", "someone/some-model"]),
        ["teacher.model", "'someone/some-model'", "network"],
    ),
    "teacher without head": (
        lambda p: p.run(teacher="lm-teacher"),
        ["teacher.model", "lm-teacher", "classification head"],
    ),
    "teacher of other classes": (
        lambda p: p.run(teacher=["--teacher", p.models / "other-classes"]),
        ["teacher.model", "[cat, dog]", "[neg, pos]"],
    ),
    "pickle": (
        lambda p: p.run(teacher=["--teacher", p.models / "pickle"]),
        ["teacher.model", "pickle", "pytorch_model.bin", "save_pretrained"],
    ),
    "damaged weights": (
        lambda p: p.run(teacher=["--teacher", p.models / "damaged"]),
        ["teacher.model", "damaged", "cannot be loaded"],
    ),
    "no weights": (
        lambda p: p.run(teacher=["--teacher", p.models / "no-weights"]),
        ["teacher.model", "no-weights", "no weights"],
    ),
    "pickle to start from": (
        lambda p: p.run("--student", p.models / "pickle", layers=()),
        ["student.model", "pickle", "pytorch_model.bin"],
    ),
    "other tokenizer": (
        lambda p: p.run("--method", "minilm", "--student", p.models / "other-tokenizer", layers=()),
        ["teacher.model", "student.model", "different tokenizers", "'good'"],
    ),
    "other width": (
        lambda p: p.run("--method", "pkd", "--student", p.models / "narrow", layers=()),
        ["pkd", "16", "32"],
    ),
    "longer than the positions": (
        lambda p: p.run("--set", "task.max_length=64"),
        ["task.max_length", "64", "--set", "32"],
    ),
    "no mask token": (
        lambda p: p.run(
            "--method",
            "soft",
            teacher=["--teacher", p.models / "no-mask"],
            data=p.world / "corpus.txt",
        ),
        ["masked-lm", "mask token", "causal-lm"],
    ),
    # data
    "empty file": (lambda p: p.run(data=p.write("rows.jsonl", "")), ["rows.jsonl", "empty"]),
    "missing file": (
        lambda p: p.run(data=p.world / "trian.jsonl"),
        ["trian.jsonl", "does not exist", "Did you mean 'train.jsonl'?"],
    ),
    "unknown format": (
        lambda p: p.run(data=p.write("rows.xlsx", "x")),
        ["rows.xlsx", "'.xlsx'", ".csv"],
    ),
    "row without label": (
        lambda p: p.run(data=p.rows(GOOD, {"text": "film"}, BAD)),
        ["rows.jsonl:2", "label"],
    ),
    "row without text": (
        lambda p: p.run(data=p.rows(GOOD, BAD, {"text": " ", "label": "pos"})),
        ["rows.jsonl:3", "text is empty"],
    ),
    "invalid JSON": (
        lambda p: p.run(data=p.write("rows.jsonl", '{"text": "a", "label": "x"}\n{"text": \n')),
        ["rows.jsonl:2", "JSON"],
    ),
    "unseen label": (
        lambda p: p.run("--set", f"task.validation={p.rows(GOOD, {**BAD, 'label': 'odd'})}"),
        ["rows.jsonl:2", "'odd'", "'neg', 'pos'"],
    ),
    "one class": (lambda p: p.run(data=p.rows(GOOD, GOOD)), ["rows.jsonl", "'pos'", "2 classes"]),
    "unknown column": (
        lambda p: p.run("--set", "task.label=lable"),
        ["'lable'", "task.label", "Did you mean 'label'?"],
    ),
    "no label column": (
        lambda p: p.run("--method", "hard", data=p.rows({"text": "a film"}, {"text": "a plot"})),
        ["rows.jsonl", "label", "task.label"],
    ),
    "labels for text": (
        lambda p: p.run("--set", "task.kind=regression", data=p.world / "corpus.txt"),
        ["corpus.txt", "no labels for regression", "task.kind"],
    ),
    # the run directory
    "run exists": (
        lambda p: [a for a in p.run() if a != "--overwrite"],
        [DIRECTORY, "already exists", "--resume", "--overwrite", "--output"],
    ),
    "not a run": (
        lambda p: p.run("--output", (p.folder / DIRECTORY / "student")),
        ["student", "not a run directory", "--output"],
    ),
    "below a file": (
        lambda p: p.run("--output", f"{p.write('file', 'x')}/run"),
        ["file/run", "cannot be written", "--output"],
    ),
    "a file": (lambda p: p.run("--output", p.write("file", "x")), ["file", "--output"]),
    "overwrite and resume": (lambda p: p.run("--resume"), ["--overwrite", "--resume"]),
    "resume of nothing": (
        lambda p: ["run", "--resume", "--output", "nowhere"],
        ["nowhere", "no run to resume", "--resume"],
    ),
    "resume of no directory": (lambda p: ["run", "--resume"], ["--resume", "--output DIR"]),
    # other commands
    "unknown method to show": (lambda p: ["methods", "sfot"], ["'sfot'", "'soft'"]),
    "explain: bad expression": (
        lambda p: ["explain", "pkd+", *p.run()[1:-3]],
        ["a method name is missing", "pkd+\n", "^"],
    ),
    "explain: methods twice": (
        lambda p: ["explain", "soft", "--method", "pkd", *p.run()[1:-3]],
        ["--method", "EXPRESSION"],
    ),
    "config: wrong type": (
        lambda p: ["config", "--set", "seed=one"],
        ["seed", "'one'", "--set"],
    ),
    "eval: no such model": (
        lambda p: ["eval", p.world / "teachr", "--data", p.world / "train.jsonl"],
        ["teachr", "Did you mean 'teacher'?"],
    ),
    "eval: missing file": (
        lambda p: ["eval", p.world / "teacher", "--data", p.world / "trian.jsonl"],
        ["trian.jsonl", "'train.jsonl'"],
    ),
    "eval: other classes": (
        lambda p: (
            ["eval", p.models / "other-classes", "--data", p.world / "train.jsonl", *QUICK[:2]]
        ),
        ["[cat, dog]", "[neg, pos]"],
    ),
}


@pytest.mark.parametrize(("arguments", "told"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_is_one_clear_message_and_touches_nothing(place, invoke, arguments, told):
    arguments = arguments(place)
    before = place.snapshot()
    done = invoke(*arguments)
    print(done.err)
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("Error: ") == 1
    assert "Traceback" not in done.err
    assert [words for words in told if words not in done.err] == []
    assert place.snapshot() == before
