"""A small world on disk that whole runs can use: a teacher, a task, a corpus."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
from dataclasses import dataclass

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
CPU_SETTINGS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "OMP_NUM_THREADS")
"""What may be set to compute with other instructions or threads; ranks inherit it."""

POSITIVE = ["good", "great", "fine", "lovely", "happy", "bright"]
NEGATIVE = ["bad", "awful", "poor", "ugly", "sad", "dark"]
NEUTRAL = ["the", "movie", "was", "a", "very", "and", "so", "it", "is", "this", "film", "plot"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def pytest_report_header():
    """Say what is in force if anything was set; to ask torch takes seconds."""
    given = [f"{name}={os.environ[name]}" for name in CPU_SETTINGS if name in os.environ]
    if given == ["OMP_NUM_THREADS=1"]:
        return None
    import torch

    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return f"cpu: {capability}, threads: {threads}, {' '.join(given)}"


def pytest_collection_modifyitems(items):
    """Start with tests on several ranks, so that no worker ends alone with a long one."""
    items.sort(key=lambda item: "parallel" not in item.path.parts)


def pytest_collection_finish():
    """Leave out of garbage collection what stays: it looks at a million objects each time."""
    gc.freeze()


def _row(draw):
    words = [draw.choice(NEUTRAL) for _ in range(draw.randint(3, 12))]
    label = draw.choice(["neg", "pos"])
    words += draw.choices(POSITIVE if label == "pos" else NEGATIVE, k=2)
    draw.shuffle(words)
    return {"text": " ".join(words), "label": label}


def write_data(folder):
    draw = random.Random(0)
    for name, size in (("train", 96), ("validation", 40), ("test", 40)):
        rows = [_row(draw) for _ in range(size)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if name == "train":
            (folder / "corpus.txt").write_text("".join(row["text"] + "\n" for row in rows))


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = SPECIAL + POSITIVE + NEGATIVE + NEUTRAL
    vocabulary = {word: index for index, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=made, **tokens)


def write_teachers(folder):
    import torch
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
    )

    tokenizer = _tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,
    }
    labels = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    torch.manual_seed(0)
    models = {
        "teacher": BertForSequenceClassification(BertConfig(**shape, **labels)),
        "lm-teacher": BertForMaskedLM(BertConfig(**shape)),
        "decoder": LlamaForSequenceClassification(LlamaConfig(**shape, **labels, pad_token_id=0)),
        "lm-decoder": LlamaForCausalLM(LlamaConfig(**shape, pad_token_id=0)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with the encoders `teacher` and `lm-teacher`, the decoders `decoder` and
    `lm-decoder` (4 blocks, width 32, 32 positions), `train.jsonl`, `validation.jsonl`,
    `test.jsonl` (classes neg and pos) and `corpus.txt`. Do not change it."""
    folder = tmp_path_factory.mktemp("world")
    write_data(folder)
    write_teachers(folder)
    return folder


def _real_tokenizer(family, texts):
    """A tokenizer of a family, trained on texts: WordPiece for BERT, byte-level BPE for RoBERTa."""
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import BertTokenizerFast, RobertaTokenizerFast

    if family == "bert":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        made.train_from_iterator(
            texts, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special)
        )
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        return BertTokenizerFast(tokenizer_object=made)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet),
    )
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return RobertaTokenizerFast(tokenizer_object=made)


def write_tongues(folder, texts):
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
    )

    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 130,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,
        "id2label": {0: "neg", 1: "pos"},
        "label2id": {"neg": 0, "pos": 1},
    }
    heads = {
        "": AutoModelForSequenceClassification,
        "masked-": AutoModelForMaskedLM,
        "causal-": AutoModelForCausalLM,
    }
    torch.manual_seed(0)
    for family in ("bert", "roberta"):
        tokenizer = _real_tokenizer(family, texts)
        names = ("pad", "bos", "eos")
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
        for head, auto in heads.items():
            architecture = "llama" if head == "causal-" else family
            config = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **shape, **ids)
            auto.from_config(config).save_pretrained(folder / f"{head}{family}")
            tokenizer.save_pretrained(folder / f"{head}{family}")


@pytest.fixture(scope="session")
def tongues(tmp_path_factory):
    """A folder with models of two tokenizers: WordPiece of `bert`, byte-level BPE of `roberta`.

    They have 3 blocks of width 32 and a head for the classes of the world; `masked-bert` and
    `causal-bert` (a Llama with BERT's tokenizer) are language models. There is no dropout. Do
    not change it."""
    folder = tmp_path_factory.mktemp("tongues")
    draw = random.Random(0)
    texts = [f"{_row(draw)['text']}, naïve café 漢字 {number}!" for number in range(50)]
    write_tongues(folder, texts)
    return folder


@pytest.fixture(scope="session")
def embedded_rows(tmp_path_factory):
    """The folder of a cache with the rows of the embedded task. Do not change it.

    To collect them takes many seconds: the first worker does it for all.
    """
    from filelock import FileLock

    from gkd_core.config.schema import TaskConfig
    from gkd_core.data.embedded import Embedded

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "cache.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("GKD_CACHE", str(folder / "cache"))
        Embedded(TaskConfig()).load("classification", 0)
    return folder / "cache" / "embedded"


@pytest.fixture
def gkd(tmp_path):
    """Run the command line in an empty folder, in a process: `gkd("run", ...)` -> Ended."""
    from tests import forked

    def _gkd(*arguments, cwd=tmp_path, **environment):
        own = {"GKD_CACHE": str(tmp_path / "cache"), "COLUMNS": "120"}
        return forked.run(forked.GKD, *arguments, cwd=cwd, **own | environment)

    return _gkd


@pytest.fixture
def view_of():
    """`view_of("student", found, layers)`: what a method sees of what is given by path."""
    import torch

    from gkd_core.api import ModelInfo, View
    from gkd_core.hooks.features import Features
    from gkd_core.hooks.paths import parse_path
    from gkd_core.losses import Relation

    def _view(name, found, layers):
        tensors = {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}
        width = next((t.shape[-1] for key, t in tensors.items() if key != "logits"), 32)
        info = ModelInfo(name, "bert", layers, width, 4, 4, 8, 64, 100, 2, 64)
        features = Features()
        for key, value in found.items():
            (capture,) = parse_path(f"{name}.{key}", "test").resolve(info, "test")
            kept = features.attention if isinstance(value, Relation) else features.tensors
            kept[capture] = value
        return View(features, [*features.tensors, *features.attention], info, "test")

    return _view


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit status and output."""

    code: int
    out: str
    err: str


@pytest.fixture
def untimed(monkeypatch):
    """Time models on two samples, once, and count the operations of one."""
    from gkd_core.analysis import compare
    from gkd_core.deploy import latency

    monkeypatch.setattr(latency, "ROUNDS", 1)
    monkeypatch.setattr(compare, "TIMED_SAMPLES", 2)
    monkeypatch.setattr(compare, "COUNTED_SAMPLES", 1)


@pytest.fixture
def brief(untimed, monkeypatch):
    """Make the summary of a run brief, which takes longer than to train a tiny model.

    Models are hardly timed, their layers are not compared, the figures of the report are made but
    not drawn, and its intervals are from few draws.
    """
    from matplotlib import pyplot

    from gkd_core.analysis import compare, comparison, figures

    def undrawn(make):
        def _make(*arguments):
            with monkeypatch.context() as context:
                context.setattr(figures, "svg", lambda figure: pyplot.close(figure) or "")
                return make(*arguments)

        return _make

    monkeypatch.setattr(comparison, "RESAMPLES", 20)
    for name in ("losses", "validation", "quality_over_size"):
        monkeypatch.setattr(figures, name, undrawn(getattr(figures, name)))
    monkeypatch.setattr(compare, "_layers", lambda *_: None)


@pytest.fixture
def invoke(brief, tmp_path, monkeypatch, capsys):
    """Run the command line in this process, in an empty folder: `invoke("run", ...)` -> Outcome.

    `invoke` costs no import of torch; `gkd` is the real thing. The width is 80 columns.
    """
    from gkd_core.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")

    def _invoke(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Outcome(stopped.value.code or 0, out, err)

    return _invoke


SUICIDE = """
import os, signal, sys
from gkd_core.cli import main
from gkd_core.training import loop

stage, index, *arguments = sys.argv[1:]
stock = loop.train_step

def train_step(where, batches, step):
    if (step.stage, step.index) == (stage, int(index)):
        os.kill(os.getpid(), signal.SIGKILL)
    return stock(where, batches, step)

loop.train_step = train_step
main(arguments)
"""


@pytest.fixture
def kill(tmp_path):
    """Run the command line until it kills itself: `kill("task", 5, "run", ...)`, before step 5."""
    from tests import forked

    def _kill(stage, index, *arguments):
        cache = str(tmp_path / "cache")
        done = forked.run(SUICIDE, stage, index, *arguments, cwd=tmp_path, GKD_CACHE=cache)
        assert done.returncode == -signal.SIGKILL, done.stderr

    return _kill


@pytest.fixture
def settings(world):
    """Arguments of a quick run on the world: 4-block teacher, 2-block student, 6 steps an epoch."""
    return [
        *("--teacher", world / "teacher", "--student-layers", 2, "--data", world / "train.jsonl"),
        *("--set", f"task.validation={world / 'validation.jsonl'}"),
        *("--set", f"task.test={world / 'test.jsonl'}", "--set", "task.max_length=32"),
        *("--set", "training.batch_size=16", "--set", "training.lr=1e-3"),
        *("--set", "training.epochs=1", "--set", "training.log_every=2"),
        *("--set", "output.reuse=false", "--no-baseline"),
    ]


FAMILIES = {"encoder": ("teacher", "lm-teacher"), "decoder": ("decoder", "lm-decoder")}
"""The classifier and the language model of each family in the world."""


@pytest.fixture
def teachers(world):
    """Settings that give each stage of a recipe the teacher it needs: `teachers("tinybert")`."""
    from gkd_core.config.resolve import resolve
    from gkd_core.plugins import registry

    def _teachers(recipe, family="encoder"):
        classifier, language_model = FAMILIES[family]
        named = [f"teacher.model={world / classifier}"]
        for stage in resolve(registry(), recipe=recipe).stages:
            if stage.config.task.kind == "lm":
                named.append(f"stages.{stage.name}.teacher.model={world / language_model}")
        return named

    return _teachers


@pytest.fixture
def draw(world, teachers):
    """Draw a recipe on the world as `gkd run --recipe` does: `draw(NAME)` -> settings, stages."""
    from gkd_core.config.resolve import resolve
    from gkd_core.plugins import registry
    from gkd_core.runs.run import prepare_run

    def _draw(recipe, family="encoder"):
        rows = f"task.train={world / 'train.jsonl'}"
        settings = [rows, "task.max_length=32", "baseline=false", *teachers(recipe, family)]
        resolved = resolve(registry(), recipe=recipe, settings=settings)
        return resolved, prepare_run(resolved, registry())

    return _draw


@pytest.fixture
def fail_at(monkeypatch):
    """Raise an error in the training step of a number, once: `fail_at(3, error)`."""
    from gkd_core.training import loop

    def _fail_at(number, error):
        errors = iter([*[None] * (number - 1), error])

        def step(*arguments, real=loop.train_step):
            if (due := next(errors, None)) is not None:
                raise due
            return real(*arguments)

        monkeypatch.setattr(loop, "train_step", step)

    return _fail_at
