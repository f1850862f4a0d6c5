"""Captured features, random or written down in a test, and methods on tiny models, in fp64."""

from __future__ import annotations

import json

import pytest
import torch

from gkd_core.api import Batch, ModelInfo, Models, Schedule, Step, View
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.features import Features
from gkd_core.hooks.paths import resolve_paths
from gkd_core.losses import Relation
from gkd_core.models.sites import find_sites
from gkd_core.objective.objective import Objective
from gkd_core.objective.passes import run_passes
from gkd_core.objective.step_plan import ActiveMethod
from gkd_core.plugins import registry
from gkd_core.testing.tiny import tiny_batch, tiny_model
from gkd_core.training import loop
from gkd_methods_intermediate.match import Match

LENGTHS = (5, 3, 1)
VOCABULARY = 11


class Side:
    """One model's features: lists by site, indexed by layer; index 0 of hidden is the embedding."""

    def __init__(self, name, seed, layers, heads, kv_heads, head_size, labels):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        rows, length = len(LENGTHS), max(LENGTHS)
        width = heads * head_size
        per_token = labels == VOCABULARY
        self.info = ModelInfo(
            name,
            "bert",
            layers,
            width,
            heads,
            kv_heads,
            head_size,
            64,
            VOCABULARY,
            labels,
            64,
            is_lm=per_token,
        )
        self.hidden = [draw(rows, length, width) for _ in range(layers + 1)]
        self.ffn = [draw(rows, length, width) for _ in range(layers + 1)]
        self.context = [draw(rows, length, width) for _ in range(layers + 1)]
        self.query = [draw(rows, heads, length, head_size) for _ in range(layers + 1)]
        self.key = [draw(rows, kv_heads, length, head_size) for _ in range(layers + 1)]
        self.value = [draw(rows, kv_heads, length, head_size) for _ in range(layers + 1)]
        self.normed = draw(rows, length, width)
        self.pooled = draw(rows, width)
        self.logits = draw(rows, length, labels) if per_token else draw(rows, labels)

    def tensors(self):
        """Every tensor that a gradient may flow to."""
        lists = (self.hidden, self.ffn, self.context, self.query, self.key, self.value)
        return [t for site in lists for t in site] + [self.normed, self.pooled, self.logits]

    def scores(self, layer):
        """Scaled dot products without any mask, `[B, A, S, S]`."""
        groups = self.info.heads // self.info.kv_heads
        keys = self.key[layer].repeat_interleave(groups, dim=1)
        return self.query[layer] @ keys.transpose(-1, -2) / self.info.head_size**0.5

    def features(self, captures, mask):
        """What an extractor would have captured."""
        found = Features()
        for capture in captures:
            if capture.site == "attention":
                scale = self.info.head_size**-0.5
                query, key = self.query[capture.layer], self.key[capture.layer]
                found.attention[capture] = Relation(query, key, mask[:, None, None], False, scale)
            else:
                found.tensors[capture] = self._tensor(capture, mask)
        return found

    def _tensor(self, capture, mask):
        site = self.normed if capture.normed else getattr(self, capture.site)
        tensor = site[capture.layer] if isinstance(site, list) else site
        if capture.reduce == "cls":
            return tensor[:, 0]
        if capture.reduce == "mean":
            return (tensor * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return tensor


class Scene:
    """A student and a teacher on one batch."""

    def __init__(
        self,
        layers=(2, 4),
        heads=(2, 2),
        kv_heads=None,
        head_size=(4, 4),
        labels=3,
        causal_lm=False,
    ):
        labels = VOCABULARY if causal_lm else labels
        kv_heads = kv_heads or heads
        self.student, self.teacher = (
            Side(name, seed, layers[seed], heads[seed], kv_heads[seed], head_size[seed], labels)
            for seed, name in enumerate(("student", "teacher"))
        )
        lengths = torch.tensor(LENGTHS)
        self.mask = torch.arange(max(LENGTHS)) < lengths[:, None]
        ids = torch.ones_like(self.mask, dtype=torch.long)
        targets = torch.where(self.mask, 1, -100)
        targets[:, 0] = -100
        self.batch = Batch(
            {"input_ids": ids, "attention_mask": self.mask.long()},
            targets if causal_lm else torch.zeros(len(LENGTHS), dtype=torch.long),
            torch.arange(len(LENGTHS)),
        )
        self.models = Models(self.student.info, self.teacher.info)
        self.method = None

    @property
    def tokens(self):
        """`(row, position)` of every position that is not padding."""
        return [(row, position) for row, size in enumerate(LENGTHS) for position in range(size)]

    def terms(self, *descriptions, index=0):
        """The loss terms of a description, as tensors by name."""
        self.method = Match(Match.Config(terms=descriptions))
        self.method.check(self.models)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            modules = torch.nn.ModuleDict(self.method.build_modules(self.models))
        self.method.modules = modules.double()
        return self.again(index)

    def again(self, index=0):
        """The terms of the method that was last used."""
        step = Step(index, 10, 0, "test", torch.Generator())
        reads = resolve_paths(self.method.reads(self.models, step), self.models, "match")
        learned, known = reads.student.get("main", ()), reads.teacher.get("main", ())
        views = (
            View(self.student.features(learned, self.mask), learned, self.student.info, "match"),
            View(self.teacher.features(known, self.mask), known, self.teacher.info, "match"),
        )
        found = self.method.loss(*views, self.batch, step)
        return {name: term.mean() for name, term in found.items()}

    def loss(self, **description):
        """The value of a description of one term."""
        (value,) = self.terms(description).values()
        return value


@pytest.fixture
def scene():
    """Build a scene: `scene(layers=(2, 4), heads=(2, 2), head_size=(4, 4), causal_lm=False)`."""
    return Scene


class Trial:
    """A method on tiny models, asked for step after step as in a run."""

    def __init__(self, name, kind="classification", layers=(2, 4), models=None, **options):
        method = registry().method(name)
        self.method = method(method.Config(**options))
        self.batch = tiny_batch(kind)
        both = models or (tiny_model(kind, layers[0], seed=1), tiny_model(kind, layers[1], seed=2))
        both[1].requires_grad_(False)
        self.student, self.teacher = (Extractor(model, find_sites(model)) for model in both)
        labels = both[1].config.vocab_size if kind == "causal-lm" else both[1].config.num_labels
        is_lm = registry().kind(kind).is_lm
        self.models = Models(
            ModelInfo.read("student", both[0].config, labels, is_lm=is_lm),
            ModelInfo.read("teacher", both[1].config, labels, is_lm=is_lm),
        )
        self.method.check(self.models)
        generator = torch.Generator().manual_seed(0)
        self.member = ActiveMethod(
            name, Schedule.parse(1.0), (self.method,), (self.models,), generator
        )
        self.objective = Objective([self.member])
        self.objective.build_modules(seed=0)
        self.objective.modules.double()

    def terms(self, index=0, epoch=0, total=10, batch=None):
        """Terms of a step by name, as tensors."""
        step, batch = Step(index, total, epoch, "test", torch.Generator()), batch or self.batch
        plan = self.objective.plan(step)
        captured = run_passes(plan, self.student, [self.teacher], batch, step)
        found = self.objective.terms(captured, batch, step, plan)
        prefix = f"{self.method.name}."
        return {name.removeprefix(prefix): term.mean() for name, term in found.items()}

    def captures(self, index=0, epoch=0, total=10):
        """What is read of student and teacher in a step, as texts."""
        plan = self.objective.plan(Step(index, total, epoch, "test", torch.Generator()))
        main = plan.passes[0]
        return tuple(
            sorted(map(str, main.captures(side, number)))
            for side, number in (("student", None), ("teacher", 0))
        )


@pytest.fixture
def trial():
    """Try a method: `trial("sid", layers=(2, 4), threshold=1.0).terms(index=3, total=10)`."""
    return Trial


@pytest.fixture
def terms(view_of):
    """`terms(method, student, teacher)`: terms by name of tensors and relations given by path.

    `modules` are the method's, `mask` tells which positions are not padding (default: as many as
    the first tensor has), `words` which word they belong to, `index` and `total` where training
    stands.
    """

    def _terms(
        method,
        student,
        teacher,
        modules=(),
        layers=(2, 4),
        mask=None,
        labels=None,
        index=0,
        total=10,
        words=None,
    ):
        if mask is None:
            first = next(v for v in student.values() if isinstance(v, torch.Tensor))
            mask = torch.ones(first.shape[:2] if first.dim() == 3 else (len(first), 1))
        inputs, rows = {"input_ids": mask, "attention_mask": mask}, torch.arange(len(mask))
        batch = Batch(inputs, labels, rows, words=words)
        method.modules = torch.nn.ModuleDict(dict(modules))
        step = Step(index, total, 0, "test", torch.Generator())
        views = view_of("student", student, layers[0]), view_of("teacher", teacher, layers[1])
        return {name: term.mean() for name, term in method.loss(*views, batch, step).items()}

    return _terms


@pytest.fixture(
    params=[
        pytest.param(("classification", "causal-lm"), id="encoder and decoder"),
        pytest.param(None, id="all kinds", marks=pytest.mark.exhaustive),
    ]
)
def kinds(request):
    """The kinds of task on which a method is checked."""
    return request.param


@pytest.fixture(
    params=[
        pytest.param(True, id="in one direction"),
        pytest.param(False, id="in each element", marks=pytest.mark.exhaustive),
    ]
)
def fast(request):
    """How a gradient is compared with differences."""
    return request.param


class Killed(BaseException):
    """The process dies here; unlike SIGKILL a test can catch it."""


def _losses(folder):
    """The losses of every step that was logged."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [{k: v for k, v in entry.items() if k.startswith("loss/")} for entry in entries]
    return [entry for entry in losses if entry]


@pytest.fixture
def interrupted(invoke, tmp_path, monkeypatch):
    """`interrupted(*arguments, after=3)`: losses of each step of a run, and of the same run when it
    dies after step 3 and goes on."""

    def _interrupted(*arguments, after):
        arguments += (
            "--set",
            "training.log_every=1",
            "--set",
            f"training.checkpoint_every={after}",
        )
        whole, broken = tmp_path / "whole", tmp_path / "broken"
        assert invoke("run", *arguments, "--output", whole).code == 0
        save = loop.save_checkpoint

        def dies(stage, progress):
            save(stage, progress)
            raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(loop, "save_checkpoint", dies)
            with pytest.raises(Killed):
                invoke("run", *arguments, "--output", broken)
        assert len(_losses(broken)) == after
        done = invoke("run", "--resume", "--output", broken)
        assert done.code == 0, done.err
        return _losses(whole), _losses(broken)

    return _interrupted
