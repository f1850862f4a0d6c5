"""The plugins of one file each: checked, run, killed and resumed with nothing but the API."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMultipleChoice

from gkd_core.api import Models, Step, contrast
from gkd_core.plugins import registry
from gkd_core.testing import check_method, tiny_batch
from gkd_core.training import loop

PLUGINS = Path(__file__).parent / "plugins"
NAMES = sorted(path.stem for path in PLUGINS.glob("*.py"))
NONE = -100
"""The label of a position without a target."""


class Killed(BaseException):
    """The process dies here; unlike SIGKILL a test can catch it."""


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """Install every plugin for this process."""
    site = tmp_path / "site"
    for name in NAMES:
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[gkd]\n{name} = {name}\n")
    for folder in (site, PLUGINS):
        monkeypatch.syspath_prepend(folder)
    registry.cache_clear()
    yield
    registry.cache_clear()


def load(name):
    return importlib.import_module(name)


# Checks; those of engines and sites stand in tests/core/rollouts and tests/core/testing, those of
# the plugins that are links with their packages in docs/examples.


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("dist", ["classification", "multiple-choice"]),
        ("memory_queue", ["classification", "causal-lm"]),
    ],
)
def test_methods_pass_on_two_ranks(name, kinds):
    (method,) = load(name).gkd_register_methods()
    check_method(method, kinds=kinds, ranks=2)


# Runs

COMMON = (
    "task.max_length=32 training.steps=6 training.checkpoint_every=2 training.log_every=1 "
    "training.lr=1e-3 training.batch_size=16 output.reuse=false output.tensorboard=false "
    "baseline=false "
)
ROWS = "--student-layers 2 --data {world}/train.jsonl task.validation={world}/validation.jsonl "
TEXT = "--data {world}/corpus.txt task.validation={world}/corpus.txt task.kind=causal-lm "
CLASSIFIER = ROWS + "--teacher {world}/teacher "
WRITER = TEXT + (
    "--student-layers 2 --teacher {world}/lm-decoder --method soft rollout.student=0.5 "
    "rollout.prompt_tokens=4 rollout.max_new_tokens=6 "
)
RUNS = {
    "confidence": CLASSIFIER + "--teacher {world}/decoder --method confidence(soft)",
    "copa": "--teacher {made}/choices --student-layers 2 --method soft+hard "
    "task.name=copa --data {made}/COPA",
    "dist": CLASSIFIER + "--method dist+hard",
    "greedy": WRITER + "rollout.engine=greedy",
    "memory_queue": CLASSIFIER + "--method memory-queue memory-queue.size=40",
    "pebble": ROWS + "--teacher {made}/pebble --method pkd+soft",
    "projected_head": CLASSIFIER + "--method projected-head",
    "sampling": WRITER + "rollout.engine=sampling rollout.cooling=0.8",
    "skewed": CLASSIFIER + "--method skewed skewed.alpha=0.3",
}
"""Arguments of a run in which a plugin takes part; those with `=` are settings."""


@pytest.fixture
def copa(tmp_path):
    """A folder like SuperGLUE's of COPA, in which the right choice repeats the premise's word."""
    folder, words = tmp_path / "COPA", ("good", "bad", "sad", "happy")
    folder.mkdir()
    for name, count in (("train", 32), ("val", 16)):
        rows = [_copa_row(words[n % 4], words[(n + 1) % 4], n) for n in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _copa_row(right, wrong, number):
    label = number % 3 % 2
    choices = [f"it is {word}" for word in (right, wrong)]
    return {
        "premise": f"the film was {right}",
        "choice1": choices[label],
        "choice2": choices[1 - label],
        "question": ("cause", "effect")[number // 2 % 2],
        "label": label,
        "idx": number,
    }


@pytest.fixture
def made(world, copa):
    """The folder with `COPA`, and with teachers for it and of another architecture."""
    settings = json.loads((world / "teacher" / "config.json").read_text())
    classes = {name: settings.pop(name) for name in ("id2label", "label2id")}
    size, pebble = settings["vocab_size"], load("pebble")
    torch.manual_seed(0)
    models = {
        "choices": BertForMultipleChoice(BertConfig(**settings)),
        "pebble": pebble.PebbleForSequenceClassification(
            pebble.PebbleConfig(vocab_size=size, positions=32, **classes)
        ),
    }
    for name, model in models.items():
        model.save_pretrained(copa.parent / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(world / "teacher" / file, copa.parent / name)
    return copa.parent


def test_every_plugin_is_run():
    assert sorted(RUNS) == NAMES


QUICK = ("memory_queue",)
"""One with a state."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.exhaustive]) for n in RUNS]
)
def test_a_killed_run_goes_on_as_if_it_never_was(name, world, made, invoke, monkeypatch):
    text = (RUNS[name] + " " + COMMON).format(world=world, made=made)
    arguments = [part for word in text.split() for part in (["--set"] * ("=" in word) + [word])]
    done = invoke("run", *arguments, "--output", "whole")
    assert done.code == 0, done.err
    with monkeypatch.context() as dying:
        dying.setattr(loop, "train_step", _dies_at(3, loop.train_step))
        with pytest.raises(Killed):
            invoke("run", *arguments, "--output", "killed")
    done = invoke("run", "--resume", "--output", "killed")
    assert done.code == 0, done.err
    (losses, weights), (killed_losses, killed_weights) = map(_outcome, ("whole", "killed"))
    assert len(losses) == 6
    assert killed_losses == losses
    assert all(torch.equal(killed_weights[key], weight) for key, weight in weights.items())


def _dies_at(index, train_step):
    def dies(stage, batches, step):
        if step.index == index:
            raise Killed
        return train_step(stage, batches, step)

    return dies


def _outcome(folder):
    """Return what was logged of each step but the time it took, and the student."""
    timing = {"samples_per_second", "rollout/tokens_per_second", "seconds", "milliseconds"}
    entries = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    steps = [{k: v for k, v in one.items() if k not in timing} for one in entries if "lr" in one]
    return steps, load_file(Path(folder, "student", "model.safetensors"))


# Values


def logits(rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def step():
    return Step(0, 1, 0, "test", torch.Generator())


def test_dist_correlates_rows_and_columns(view_of):
    learned = logits([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    known = logits([[0.6, 0.1, 0.3], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]])
    views = (
        view_of("student", {"logits": 2 * learned}, 2),
        view_of("teacher", {"logits": 2 * known}, 4),
    )
    method = load("dist").Dist
    config = method.Config(temperature=2.0, gamma=3.0)
    terms = method(config).loss(*views, tiny_batch("classification", rows=3), step())
    # By hand: sums of products of what is left of each row, and each column, without its mean; the
    # unit is 1/30.
    rows = [_apart(51, 42, 114), _apart(60, 42, 96), _apart(132, 186, 96)]
    columns = [_apart(84, 78, 96), _apart(63, 42, 126), _apart(90, 126, 78)]
    assert terms["inter"].tolist() == pytest.approx([4 * row for row in rows], rel=1e-12)
    assert terms["intra"].tolist() == pytest.approx([3 * 4 * sum(columns) / 3] * 3, rel=1e-12)


def _apart(product, one, other):
    return 1 - product / math.sqrt(one * other)


def test_the_queue_adds_earlier_vectors_to_those_of_the_batch(view_of):
    batch, draw = tiny_batch("classification"), torch.Generator().manual_seed(0)
    method = load("memory_queue").MemoryQueue
    queue = method(method.Config(size=6))
    queue.modules = torch.nn.ModuleDict({"map": torch.nn.Identity()})
    vectors = [torch.randn(2, 4, 8, generator=draw, dtype=torch.float64) for _ in range(2)]
    found = []
    for learned, known in vectors:
        views = (
            view_of("student", {"hidden[2]|cls": learned}, 2),
            view_of("teacher", {"hidden[4]|cls": known}, 4),
        )
        found.append(queue.loss(*views, batch, step())["queue"])
    alone = [contrast(*pair, batch.samples).values for pair in vectors]
    torch.testing.assert_close(found[0], alone[0], rtol=0, atol=1e-12)
    learned, everything = vectors[1][0], torch.cat([vectors[1][1], vectors[0][1]])
    scores = torch.cosine_similarity(learned[:, None], everything[None], dim=-1) / 0.1
    expected = scores.logsumexp(-1) - scores.diagonal()
    torch.testing.assert_close(found[1], expected, rtol=0, atol=1e-12)
    kept = torch.nn.functional.normalize(everything[:6], dim=-1)
    torch.testing.assert_close(queue.state_dict()["queue"], kept, rtol=0, atol=1e-12)


def test_a_teacher_is_weighted_by_its_certainty(view_of):
    sure, torn = [0.0, -1e3, -1e3, -1e3], [0.0, 0.0, -1e3, -1e3]
    known = torch.tensor([sure, torn, [1.0] * 4], dtype=torch.float64)
    view = view_of("teacher", {"logits": known}, 4)
    combiner = load("confidence").Confidence
    made = combiner(combiner.Config(), [Models(view.model, view.model)] * 2)
    weights = made.weight(0, view, view, tiny_batch("classification", rows=3), step())
    assert weights.tolist() == pytest.approx([1 / 2, 1 / 4, 0], abs=1e-12)
