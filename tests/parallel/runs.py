"""Whole runs in this process or on ranks, and how they compare; `runs` in the tests."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gkd_core.analysis.run_summary import summarize_run
from gkd_core.api import hookimpl
from gkd_core.config.render import to_toml
from gkd_core.config.resolve import resolve
from gkd_core.contract.method import Method
from gkd_core.distributed.ranks import is_first, rank, wait, world_size
from gkd_core.errors import GkdError
from gkd_core.hooks.operations import Add, Pass, Swap, When
from gkd_core.losses import Term, mse
from gkd_core.plugins import Registry
from gkd_core.rollouts.rollouts import Rollouts
from gkd_core.runs.run import Run, prepare_run
from gkd_core.tracking.recorder import JsonLines, Recorder
from gkd_core.training import loop

RUN = """
baseline = false
[student]
layers = 2
[task]
train = "{train}"
validation = "{validation}"
max_length = 32
[output]
reuse = false
[training]
batch_size = 16
lr = 1e-3
# Far above the rounding of a gradient: AdamW would make whole steps of it where it is zero.
eps = 1e-4
log_every = 1
steps = 8
evaluate_every = 4
"""


class Remembers(Method):
    """Has trained modules, a state of its own in each rank, and random draws."""

    name = "remembers"
    paper = "A test"

    def __init__(self, config=None):
        super().__init__(config)
        self.average = 0.5

    def reads(self, models, step):
        return ["student.hidden[1]|cls", "teacher.hidden[2]|cls"]

    def build_modules(self, models):
        width = models.student.hidden_size
        return {"projection": nn.Linear(width, width)}

    def loss(self, student, teacher, batch, step):
        projected = self.modules["projection"](student.hidden.cls[1])
        noise = torch.rand(projected.shape[-1], generator=step.generator)
        losses = (noise * (projected - teacher.hidden.cls[2]).square()).mean(-1)
        self.average = 0.9 * self.average + 0.1 * float(losses.detach().mean())
        return {"remembers": losses / (1 + self.average)}

    def state_dict(self):
        return {"average": self.average}

    def load_state_dict(self, state):
        self.average = state["average"]


class Queues(Method):
    """Keeps the teacher's vectors of earlier rows, those of its rank, and is told of its stage."""

    name = "queues"
    paper = "A test"
    batch_coupled = True

    def __init__(self, config=None):
        super().__init__(config)
        self.queue = torch.zeros(0)
        self.events = []

    def on_stage_start(self, stage):
        self.start = stage.evaluate_student()
        self.events.append(("start", len(self.queue), self.start["loss"]))

    def begin_step(self, step):
        self.scale = float(torch.rand((), generator=step.generator))

    def on_evaluate(self, stage, step, metrics):
        self.events.append(("evaluate", step.index, metrics["loss"]))

    def on_stage_end(self, stage, error):
        self.events.append(("end", type(error).__name__))

    def reads(self, models, step):
        return ["student.hidden[2]|cls", "teacher.hidden[4]|cls"]

    def loss(self, student, teacher, batch, step):
        known = teacher.hidden.cls[4]
        others = torch.cat([known, self.queue.to(known)])
        scores = torch.cosine_similarity(student.hidden.cls[2][:, None], others[None], dim=-1)
        self.queue = others[:24]
        return {"queues": self.scale * (scores.logsumexp(-1) - scores.diagonal())}

    def state_dict(self):
        # Two tensors that share memory, one of half the size, and one beside JSON values.
        return {"parts": [self.queue[:9], {"rest": self.queue[9:], "n": 9}], "half": self.half}

    @property
    def half(self):
        return self.queue.bfloat16()

    def load_state_dict(self, state):
        first, rest = state["parts"]
        self.queue = torch.cat([first, rest["rest"]])
        assert rest["n"] == 9
        assert torch.equal(state["half"], self.half)
        assert all(tensor.device.type == "cpu" for tensor in (first, state["half"]))


class Moves(Method):
    """Takes a step along a gradient in a second pass, and uses a weight of its own by hand."""

    name = "moves"
    paper = "A test"

    def reads(self, models, step):
        return [f"{model}.hidden[2]|cls" for model in ("student", "student@moved", "teacher")] + [
            "student.embedding"
        ]

    def passes(self, models, step):
        return [Pass("moved")]

    def writes(self, models, step):
        return [Add("student@moved.embedding", self.step_along_gradient)]

    def step_along_gradient(self, context):
        distance = context.student.hidden.cls[2] - context.teacher.hidden.cls[2]
        gradient = context.gradient(distance.square().sum(), context.student.embedding)
        return 0.1 * gradient / (gradient.norm(dim=-1, keepdim=True) + 1e-6)

    def build_modules(self, models):
        return {"map": nn.Linear(models.student.hidden_size, models.student.hidden_size)}

    def loss(self, student, teacher, batch, step):
        mapped = self.modules["map"](student.hidden.cls[2])
        moved = student.at("moved").hidden.cls[2] @ self.modules["map"].weight.T
        return {
            name: (found - teacher.hidden.cls[2]).square().mean(-1)
            for name, found in (("mapped", mapped), ("moved", moved))
        }


class Borrows(Method):
    """Runs blocks of the teacher in the student."""

    name = "borrows"
    paper = "A test"
    borrows_blocks = True

    def reads(self, models, step):
        return ["student.hidden[2]|cls", "teacher.hidden[2]|cls"]

    def writes(self, models, step):
        return [Swap("student.block[1]", "teacher.block[1,2]", when=When(first=2))]

    def loss(self, student, teacher, batch, step):
        return {"borrows": (student.hidden.cls[2] - teacher.hidden.cls[2]).square().mean(-1)}


class Unlocks(Method):
    """Thaws a block in the midst of training; the embedding stays frozen and the head is slow."""

    name = "unlocks"
    paper = "A test"

    def lr_factors(self, models, step):
        return {"embedding": 0.0, "head": 0.1, **({2: 0.0} if step.index < 4 else {})}

    def reads(self, models, step):
        return ["student.pooled", "teacher.pooled"]

    def loss(self, student, teacher, batch, step):
        return {"unlocks": (student.pooled - teacher.pooled).square().mean(-1)}


class Even(Method):
    """Averages over even positions of some rows: a mean of ones must be 1."""

    name = "even"
    paper = "A test"

    def items(self, batch):
        even = torch.arange(batch.mask.shape[1]) % 2 == 0
        return {"even": batch.mask & even & (batch.rows % 3 == 0).unsqueeze(1)}

    def reads(self, models, step):
        return ["student.hidden[2]", "teacher.hidden[4]"]

    def loss(self, student, teacher, batch, step):
        over = batch.items("even")
        ones = Term(over.mask.float() + 0 * student.hidden[2].sum(), over)
        return {"even": mse(student.hidden[2], teacher.hidden[4], over), "ones": ones}


class Burst(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


class Bursts(Method):
    """Has a gradient that overflows once, in the last rank."""

    name = "bursts"
    paper = "A test"

    def reads(self, models, step):
        return ["student.hidden[1]|cls"]

    def loss(self, student, teacher, batch, step):
        overflows = step.index == 2 and rank() == world_size() - 1
        loss = student.hidden.cls[1].square().mean(-1)
        return {"bursts": Burst.apply(loss) if overflows else loss}


class Plugin:
    @hookimpl
    def gkd_register_methods(self):
        own = [Borrows, Bursts, Even, Moves, Queues, Remembers, Unlocks]
        files = ("dist", "memory_queue", "projected_head")
        return [*own, *(m for name in files for m in _plugin(name).gkd_register_methods())]

    @hookimpl
    def gkd_register_combiners(self):
        return _plugin("confidence").gkd_register_combiners()

    @hookimpl
    def gkd_register_rollouts(self):
        return _plugin("greedy").gkd_register_rollouts()


def _plugin(name):
    """Load a plugin of one file."""
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "plugins" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class Entry:
    name = value = "test"
    dist = None

    def load(self):
        return Plugin()


def _teachers(world, names):
    """Return what `--teacher` stands for: one folder of the world, or several joined by `+`."""
    if "+" not in names:
        return [{"model": str(world / names)}]
    return [{"model": str(world / name), "name": name} for name in names.split("+")]


def train(world, folder, teacher, settings, dies_at=None):
    """Train in `folder`, in this process or as one of several ranks."""
    _run(world, folder, teacher, settings, dies_at)


def _run(world, folder, teacher, settings, dies_at=None):
    registry = Registry([*entry_points(group="gkd"), Entry()])
    file = folder / f"rank-{rank()}.toml"
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
    wait()
    data = {"train": "corpus.txt", "validation": "corpus.txt"}
    if not any("-lm" in setting for setting in settings):
        data = {split: f"{split}.jsonl" for split in data}
    file.write_text(RUN.format(**{split: world / name for split, name in data.items()}))
    resolved = resolve(
        registry,
        files=[file],
        settings=list(settings),
        flags={"teachers": (_teachers(world, teacher), "--teacher")},
    )
    specs = prepare_run(resolved, registry)
    if is_first():
        (folder / "config.toml").write_text(to_toml(resolved))
    recorder = Recorder([JsonLines(folder / "metrics.jsonl")] if is_first() else [])
    run = Run(resolved, registry, specs, folder, recorder)
    stock = loop.train_step

    def dies(stage, batches, step):
        if step.index == dies_at:
            raise KeyboardInterrupt
        return stock(stage, batches, step)

    loop.train_step = dies
    try:
        run.execute()
    except KeyboardInterrupt:
        assert dies_at is not None
    finally:
        loop.train_step = stock
    return run


def each(function, cases):
    """Call a function with the arguments of each case, in the same ranks."""
    return [function(*case) for case in cases]


def train_and_conclude(world, folder, cases):
    """Train several runs in the same ranks, and compare their models."""
    for name, *arguments in cases:
        run = _run(world, folder / name, *arguments)
        summarize_run(run)


def train_all(world, folder, cases):
    """Train several runs in the same ranks: (name of the folder, what `train` takes after it)."""
    for name, *arguments in cases:
        train(world, folder / name, *arguments)


def fail_all(world, folder, cases):
    """Train several runs that end with an error; return the errors by name."""
    errors = {}
    for name, teacher, settings in cases:
        with pytest.raises(GkdError) as raised:
            _run(world, folder / name, teacher, settings)
        errors[name] = str(raised.value)
    return errors


def events_of(world, folder, settings, dies_at=None):
    """Return what the method `queues` is told in a run."""
    run = _run(world, folder, "teacher", settings, dies_at)
    return run.last.members[-1].methods[0].events


def train_noting_texts(world, folder, cases):
    """Train several runs on these ranks; return the texts that this rank trained on, by run."""
    stock, texts = Rollouts.apply, []

    def apply(rollouts, batches, step):
        found = stock(rollouts, batches, step)
        for batch in found:
            counted = batch.rows.tolist() if batch.counted else []
            for place, row in enumerate(counted):
                ids = batch.inputs["input_ids"][place][batch.mask[place]].tolist()
                source = int(batch.sources[place])
                texts[-1][step.index, row] = source, ids, int(batch.tokens.mask[place].sum())
        return found

    Rollouts.apply = apply
    try:
        for name, *arguments in cases:
            texts.append({})
            train(world, folder / name, *arguments)
    finally:
        Rollouts.apply = stock
    return texts


def train_on_shares(world, folder, cases):
    """Train as `train_all` does; the logits of a divided model must never be put together."""
    from gkd_core.losses import LinearLogits
    from gkd_core.parallel.layers import VocabularyHead

    LinearLogits.dense = VocabularyHead.forward = pytest.fail
    train_all(world, folder, cases)


def losses_over_vocabulary(world, folder, settings):
    """Return the kinds of student logits that losses are computed from in a run."""
    from gkd_core.losses import divergences

    kinds = set()
    stock = divergences.rowwise

    def rowwise(rule, student, *arguments):
        if torch.is_grad_enabled():
            kinds.add(type(student).__name__)
        return stock(rule, student, *arguments)

    divergences.rowwise = rowwise
    train(world, folder, "lm-decoder", ["method=soft", "task.kind=causal-lm", *settings])
    return sorted(kinds)


def draws_after_training(world, folder):
    """Return what the generator that dropout uses gives after a run."""
    train(world, folder, "teacher", ["method=hard"])
    return torch.rand(4).tolist()


def _numbers(folder):
    """Return what was logged of each step, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    left_out = ("samples_per_second", "rollout/tokens_per_second", "stage")
    return [{k: v for k, v in line.items() if k not in left_out} for line in lines]


def assert_layouts_equal(world, folder, cases, layouts, on_ranks, tolerance=1e-5):
    """Train runs in this process, and on two ranks in each layout; compare all that they give."""
    train_all(world, folder, cases)
    divided = [
        (f"{name} {layout}", teacher, [*given, *layout.split()])
        for layout in layouts
        for name, teacher, given in cases
    ]
    on_ranks(2, train_all, world, folder, divided)
    for name, *_ in divided:
        assert_equal(folder / name, folder / name.split()[0], tolerance)


def assert_equal(found, expected, tolerance=1e-5):
    """Compare two runs: every number logged and every weight of the student."""
    for mine, theirs in zip(_numbers(found), _numbers(expected), strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance, abs=tolerance), (mine, theirs)
    mine, theirs = (load_file(f / "student" / "model.safetensors") for f in (found, expected))
    assert mine.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(mine[name], weight, rtol=0, atol=tolerance, msg=name)


def assert_same(found, expected):
    """Compare two runs to the last bit."""
    assert _numbers(found) == _numbers(expected)
    mine, theirs = (load_file(f / "student" / "model.safetensors") for f in (found, expected))
    assert all(torch.equal(mine[name], weight) for name, weight in theirs.items())
