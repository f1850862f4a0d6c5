"""Combiners on tensors written down in a test, and runs with a large and a small teacher."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager

import pytest
import torch

from gkd_core.api import Batch, ModelInfo, Models, Step, View
from gkd_core.hooks.features import Features
from gkd_core.hooks.paths import parse_path
from gkd_core.training import loop

SEED = 5
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _info(name, layers=4, hidden=3, labels=2):
    shape = (layers, hidden, 1, 1, hidden, 4 * hidden, 100, labels, 64)
    return ModelInfo(name, "bert", *shape, is_lm=labels == 100)


def _view(info, found):
    features = Features()
    side = "student" if info.name == "student" else "teacher"
    for path, value in found.items():
        (capture,) = parse_path(f"{side}.{path}", "test").resolve(info, "test")
        features.tensors[capture] = value
    return View(features, features.tensors, info, "test")


class Case:
    """A combiner with its models and one batch."""

    def __init__(self, cls, options, student, teachers, labels, layers):
        rows = len(next(iter(student.values())))
        width = next(iter(student.values())).shape[-1]
        hidden = next((t.shape[-1] for p, t in teachers[0].items() if "hidden" in p), 3)
        hidden = student["pooled"].shape[-1] if "pooled" in student else hidden
        infos = [_info(f"t{i}", layers[i], hidden, width) for i in range(len(teachers))]
        learner = _info("student", 2, hidden, width)
        self.combiner = cls(cls.Config(**options), [Models(learner, info) for info in infos])
        self.combiner.modules = torch.nn.ModuleDict(dict(self.combiner.build_modules())).double()
        self.student = _view(learner, student)
        self.teachers = [_view(info, found) for info, found in zip(infos, teachers, strict=True)]
        mask = torch.ones(rows, 1, dtype=torch.long)
        self.batch = Batch({"attention_mask": mask}, labels, torch.arange(rows))

    def step(self, index=0, total=10):
        generator = torch.Generator().manual_seed(SEED)
        return Step(index, total, 0, "test", generator)

    @torch.no_grad()
    def weights(self, index=0, total=10):
        """Return the weight of each teacher."""
        step = self.step(index, total)
        return [
            self.combiner.weight(number, self.student, teacher, self.batch, step)
            for number, teacher in enumerate(self.teachers)
        ]


@pytest.fixture
def dies_before(monkeypatch):
    """`with dies_before(5, look):` runs are interrupted before step 5; `look` sees each stage."""
    stock = loop.train_step

    @contextmanager
    def _dies_before(index, look=lambda stage: None):
        def train_step(stage, batches, step):
            if step.index == index:
                raise KeyboardInterrupt
            look(stage)
            return stock(stage, batches, step)

        with monkeypatch.context() as dying:
            dying.setattr(loop, "train_step", train_step)
            yield

    return _dies_before


@pytest.fixture
def case():
    """`case(Average, {}, student, teachers)`: tensors are given by path, such as `logits`."""

    def _case(cls, options, student, teachers, labels=None, layers=(4, 3, 2)):
        return Case(cls, options, student, teachers, labels, layers)

    return _case


@pytest.fixture(scope="session")
def pair(world, tmp_path_factory):
    """Folders of two classifiers: `large` with 4 blocks of width 32, `small` with 2 of 16."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("pair")
    large = BertConfig.from_pretrained(world / "teacher")
    small = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32}
    for name, sizes, seed in (("large", {}, 1), ("small", small, 2)):
        torch.manual_seed(seed)
        config = BertConfig(**(large.to_dict() | sizes))
        BertForSequenceClassification(config).save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(world / "teacher").save_pretrained(folder / name)
    return folder


@pytest.fixture
def two(pair, settings):
    """Arguments of a quick run with both teachers, `large` first."""
    named = [("--teacher", f"{name}={pair / name}") for name in ("large", "small")]
    return [*(text for flag in named for text in flag), *settings[2:], "--no-baseline"]


@pytest.fixture
def calm(pair, tmp_path):
    """The pair without dropout, and arguments that start the student from a checkpoint."""
    shutil.copytree(pair, tmp_path / "calm")
    for path in (tmp_path / "calm").glob("*/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | NO_DROPOUT))
    return tmp_path / "calm"
