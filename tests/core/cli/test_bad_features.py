"""Wrong inputs of each command and feature: one message, at once, and nothing is written."""

import json
import os
import shutil

import pytest
from tests.grids import first_of

ESCAPE = "\x1b[2Jred"


@pytest.fixture(scope="module")
def place(world, tmp_path_factory):
    """A folder with wrong things: models, runs, studies, data."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty").mkdir()
    (folder / "file").write_text("text")
    (folder / "binary.jsonl").write_bytes(bytes(range(256)))
    (folder / "empty.jsonl").write_text("")
    os.mkfifo(folder / "fifo.jsonl")
    for name, text in {
        "run": "method = 7\n",
        "half-run": 'method = "soft"\n[[teachers]]\nmodel = "nowhere"\n',
        "cut-run": 'method = "so',
    }.items():
        (folder / name / "stages").mkdir(parents=True)
        (folder / name / "config.toml").write_text(text)
    studies = {
        "no-axes.toml": 'name = "a"\n',
        "axis-number.toml": "[axes]\nseed = 1\n",
        "axis-empty.toml": "[axes]\nseed = []\n",
        "axis-unknown.toml": "[axes]\ncolour = [1, 2]\n",
        "axis-many.toml": f"[axes]\nseed = {list(range(3000))}\nmethod = {['soft'] * 3000}\n",
        "study-syntax.toml": "[axes\n",
        "study-deep.json": '{"axes":' + "[" * 50_000,
        "bad-name.toml": 'name = "../../up"\n[axes]\nseed = [1, 2]\n',
    }
    for name, text in studies.items():
        (folder / name).write_text(text)
    shutil.copytree(world / "teacher", folder / "number-model")
    config = json.loads((world / "teacher" / "config.json").read_text())
    wrong = config | {"hidden_size": -4, "num_attention_heads": 0}
    (folder / "number-model" / "config.json").write_text(json.dumps(wrong))
    (folder / "pickled-model").mkdir()
    shutil.copy(world / "teacher" / "config.json", folder / "pickled-model")
    (folder / "pickled-model" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    shutil.copytree(world / "teacher", folder / "pipeline-model")
    named = config | {"architectures": ["pipeline"]}
    (folder / "pipeline-model" / "config.json").write_text(json.dumps(named))
    shutil.copytree(world / "teacher", folder / "cut-model")
    weights = folder / "cut-model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    return folder


def _run(world, *settings):
    base = ["--teacher", world / "teacher", "--student-layers", 2, "--no-baseline"]
    data = ["--data", world / "train.jsonl", "--set", "task.max_length=32", "--output", "out"]
    return ["run", *base, *data, *(part for one in settings for part in ("--set", one))]


def _lm(world, *settings):
    base = ["--teacher", world / "lm-decoder", "--student-layers", 2, "--no-baseline"]
    data = ["--data", world / "corpus.txt", "--set", "task.kind=causal-lm", "--output", "out"]
    own = ("task.max_length=16", *settings)
    return ["run", *base, *data, *(part for one in own for part in ("--set", one))]


COMMANDS = {
    "export: nothing": lambda p, w: ["export", p / "nowhere", "--to", "out"],
    "export: file": lambda p, w: ["export", p / "file", "--to", "out"],
    "export: empty": lambda p, w: ["export", p / "empty", "--to", "out"],
    "export: invalid run": lambda p, w: ["export", p / "run", "--to", "out"],
    "export: unfinished": lambda p, w: ["export", p / "half-run", "--to", "out"],
    "export: cut": lambda p, w: ["export", p / "cut-run", "--to", "out"],
    "export: no place": lambda p, w: ["export", p / "half-run"],
    "export: opset": lambda p, w: [
        "export",
        "a",
        "--to",
        "out",
        "--format",
        "onnx",
        "--opset",
        "17",
    ],
    "export: quantize hf": lambda p, w: ["export", "a", "--to", "out", "--quantize", "int8"],
    "export: rows": lambda p, w: ["export", "a", "--to", "out", "--rows", "0"],
    "export: long": lambda p, w: ["export", "x" * 5000, "--to", "out"],
    "export: control": lambda p, w: ["export", ESCAPE, "--to", "out"],
    "bench: nothing": lambda p, w: ["bench", p / "nowhere"],
    "bench: file": lambda p, w: ["bench", p / "file"],
    "bench: empty": lambda p, w: ["bench", p / "empty"],
    "bench: no models": lambda p, w: ["bench"],
    "bench: impossible": lambda p, w: ["bench", p / "number-model"],
    "bench: pickle": lambda p, w: ["bench", p / "pickled-model"],
    "bench: no class of models": lambda p, w: ["bench", p / "pipeline-model"],
    "bench: cut": lambda p, w: ["bench", p / "cut-model"],
    "bench: batch": lambda p, w: ["bench", w / "teacher", "--batch", "0"],
    "bench: huge batch": lambda p, w: ["bench", w / "teacher", "--batch", "9" * 40],
    "bench: length": lambda p, w: ["bench", w / "teacher", "--length", "100000"],
    "bench: threads": lambda p, w: ["bench", w / "teacher", "--threads", "-1"],
    "bench: output is a file": lambda p, w: ["bench", w / "teacher", "--output", p / "file"],
    "bench: control": lambda p, w: ["bench", ESCAPE],
    "new-method: dots": lambda p, w: ["new-method", "../up"],
    "new-method: empty": lambda p, w: ["new-method", ""],
    "new-method: digits": lambda p, w: ["new-method", "1st"],
    "new-method: known": lambda p, w: ["new-method", "soft"],
    "new-method: long": lambda p, w: ["new-method", "x" * 5000],
    "new-method: control": lambda p, w: ["new-method", ESCAPE],
    "new-method: script": lambda p, w: ["new-method", "Ünïcode"],
    "new-method: place": lambda p, w: ["new-method", "mine", "--output", p / "file" / "x"],
    "new-method: full place": lambda p, w: ["new-method", "mine", "--output", p],
    "new-run: no teacher": lambda p, w: ["new-run", "--teacher", p / "nowhere", "--data", p],
    "new-run: no data": lambda p, w: ["new-run", "--teacher", w / "teacher", "--data", p / "no"],
    "new-run: binary": lambda p, w: (
        ["new-run", "--teacher", w / "teacher", "--data", p / "binary.jsonl"]
    ),
    "new-run: empty data": lambda p, w: (
        ["new-run", "--teacher", w / "teacher", "--data", p / "empty.jsonl"]
    ),
    "new-run: fifo": lambda p, w: (
        ["new-run", "--teacher", w / "teacher", "--data", p / "fifo.jsonl"]
    ),
    "new-run: impossible": lambda p, w: (
        ["new-run", "--teacher", p / "number-model", "--data", w / "train.jsonl"]
    ),
    "new-run: output": lambda p, w: (
        [
            *("new-run", "--teacher", w / "teacher", "--data", w / "train.jsonl"),
            *("--output", p / "file" / "x"),
        ]
    ),
    "new-run: control": lambda p, w: ["new-run", "--teacher", ESCAPE, "--data", w / "train.jsonl"],
    "clean: room": lambda p, w: ["clean", "../answers"],
    "clean: control": lambda p, w: ["clean", ESCAPE],
    "clean: leftovers of nothing": lambda p, w: ["clean", "--leftovers", p / "nowhere"],
    "clean: leftovers of a file": lambda p, w: ["clean", "--leftovers", p / "file", "--yes"],
    "clean: leftovers, long": lambda p, w: ["clean", "--leftovers", "x" * 5000],
    "clean: both": lambda p, w: ["clean", "answers", "--leftovers", p],
    "doctor: argument": lambda p, w: ["doctor", "me"],
    "search: no budget": lambda p, w: ["search", "--teacher", w / "teacher"],
    "search: latency": lambda p, w: ["search", "--max-latency", "-5ms"],
    "search: nan": lambda p, w: ["search", "--max-weights", "nan"],
    "search: share": lambda p, w: ["search", "--min-kept", "300%"],
    "search: time": lambda p, w: ["search", "--max-size", "1MB", "--time", "soon"],
    "search: size": lambda p, w: ["search", "--max-size", "\u0663MB"],
    "search: output": lambda p, w: (
        ["search", "--max-size", "1MB", "--output", p / "file", *_run(w)[1:3], *_run(w)[6:8]]
    ),
    **{
        f"study run: {name}": lambda p, w, name=name: ["study", "run", p / name]
        for name in (
            *("no-axes.toml", "axis-number.toml", "axis-empty.toml", "axis-unknown.toml"),
            *("axis-many.toml", "study-syntax.toml", "study-deep.json", "bad-name.toml"),
            *("nowhere", "empty", "file"),
        )
    },
    "study run: shard": lambda p, w: ["study", "run", p / "empty", "--shard", "4/4"],
    "study run: launcher": lambda p, w: ["study", "run", p / "empty", "--launcher", "rocket"],
    "study run: axis": lambda p, w: ["study", "run", p / "empty", "--axis", "seed"],
    "study status: nothing": lambda p, w: ["study", "status", p / "nowhere"],
    "study status: control": lambda p, w: ["study", "status", ESCAPE],
    "study report: file": lambda p, w: ["study", "report", p / "file"],
    "study plan: deep": lambda p, w: ["study", "plan", p / "study-deep.json"],
    "replay: nothing": lambda p, w: ["replay", p / "half-run"],
    "replay: rank": lambda p, w: ["replay", p / "half-run", "--rank", "9" * 30],
    "cache: nothing": lambda p, w: ["cache", "--teacher", p / "nowhere", "--output", "out"],
    "cache: k": lambda p, w: ["cache", "--output", "out", "--form", "top-k", "--k", "0"],
    "cache: temperature": lambda p, w: ["cache", "--output", "out", "--temperature", "nan"],
    "prune: no target": lambda p, w: ["prune", w / "teacher"],
    "analyze: nothing": lambda p, w: ["analyze", p / "nowhere"],
    "analyze: invalid": lambda p, w: ["analyze", p / "run"],
    "eval: leftover": lambda p, w: ["eval", p / "cut-model", "--data", w / "train.jsonl"],
}

SETTINGS = {
    "lora: rank": lambda w: _run(w, "student.lora.rank=0"),
    "lora: too high a rank": lambda w: _run(w, "student.lora.rank=100000"),
    "lora: alpha": lambda w: _run(w, "student.lora.alpha=-1"),
    "lora: dropout": lambda w: _run(w, "student.lora.dropout=1"),
    "lora: no such layer": lambda w: _run(w, 'student.lora.targets=["nowhere"]'),
    "lora: none": lambda w: _run(w, "student.lora.targets=[]"),
    "lora: word": lambda w: _run(w, "student.lora.targets=most"),
    "lora: pattern": lambda w: _run(w, 'student.lora.targets=["("]'),
    "lora: with a table": lambda w: _run(w, "student.lora=16"),
    "writing: classification": lambda w: _run(w, "writing.samples=1"),
    "writing: samples": lambda w: _lm(w, "writing.samples=2"),
    "writing: pattern": lambda w: _lm(w, 'writing.pattern="("'),
    "writing: top_p": lambda w: _lm(w, "writing.top_p=0"),
    "writing: temperature": lambda w: _lm(w, "writing.temperature=inf"),
    "writing: too long": lambda w: _lm(w, "writing.max_new_tokens=100000"),
    "writing: longer than the least": lambda w: _lm(
        w, "writing.min_tokens=9", "writing.max_new_tokens=8"
    ),
    "writing: unknown": lambda w: _lm(w, "writing.colour=1"),
    "source: unknown": lambda w: _run(w, "teacher.source.name=telepathy"),
    "source: no name": lambda w: _run(w, "teacher.source.url=http://localhost:1"),
    "source: no url": lambda w: _lm(w, "teacher.source.name=server"),
    "source: scheme": lambda w: _lm(
        w, "teacher.source.name=server", "teacher.source.url=file:///etc/passwd"
    ),
    "source: no host": lambda w: _lm(w, "teacher.source.name=server", "teacher.source.url=http://"),
    "source: port": lambda w: _lm(
        w, "teacher.source.name=server", "teacher.source.url=http://localhost:99999"
    ),
    "source: nobody there": lambda w: _lm(
        w, "teacher.source.name=server", "teacher.source.url=http://127.0.0.1:9"
    ),
    "source: cache of nothing": lambda w: _run(
        w, "teacher.source.name=cache", "teacher.source.path=nowhere"
    ),
    "source: no path": lambda w: _run(w, "teacher.source.name=cache"),
    "source: option": lambda w: _run(
        w, "teacher.source.name=cache", "teacher.source.path=x", "teacher.source.colour=1"
    ),
    "replay: none": lambda w: _lm(w, "rollout.engine=generate", "rollout.replay=0"),
    "replay: fraction": lambda w: _lm(w, "rollout.engine=generate", "rollout.replay=1.5"),
    "replay: no student": lambda w: _lm(w, "rollout.engine=generate", "rollout.replay=8"),
    "replay: no engine": lambda w: _lm(w, "rollout.replay=8"),
    "replay: classification": lambda w: _run(
        w, "rollout.engine=generate", "rollout.student=1", "rollout.replay=8"
    ),
    "adaptive: word": lambda w: _lm(
        w, "rollout.engine=generate", "rollout.student=1", "rollout.adaptive=maybe"
    ),
    "adaptive: rise": lambda w: _lm(
        w, "rollout.engine=generate", "rollout.student=1", "rollout.loss_rise=nan"
    ),
    "engine: unknown": lambda w: _lm(w, "rollout.engine=steam", "rollout.student=1"),
    "shares: above 1": lambda w: _lm(
        w, "rollout.engine=generate", "rollout.student=0.8", "rollout.teacher=0.8"
    ),
}


@pytest.mark.parametrize("turn", first_of(range(8)))
def test_wrong_use_of_a_command_is_refused(refuse, place, world, turn):
    chosen = list(COMMANDS.items())[turn::8]
    answers = {name: refuse(*arguments(place, world)) for name, arguments in chosen}
    assert {name: wrong for name, wrong in answers.items() if wrong} == {}


@pytest.mark.parametrize("turn", first_of(range(6)))
def test_wrong_settings_of_a_feature_are_refused(refuse, world, turn):
    chosen = list(SETTINGS.items())[turn::6]
    answers = {name: refuse(*arguments(world)) for name, arguments in chosen}
    assert {name: wrong for name, wrong in answers.items() if wrong} == {}
