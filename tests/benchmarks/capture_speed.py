"""Distillation steps in gkd against Hugging Face loops written by hand with `output_*` flags.

A 12-layer teacher and a 6-layer student of width 384. Each side runs in a process of its own, in
turn, several times; printed are medians and the median of the ratios. The loops use eager
attention, without which there are no attention maps; `pkd+soft:sdpa`, which needs none, does not.
`reads-6` is the teacher alone, when only layer 6 of 12 is read, against all 12.

    python tests/benchmarks/capture_speed.py [METHOD ...]
"""

from __future__ import annotations

import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

ROUNDS = 3
SHAPES = {"8x512": (8, 512), "16x128": (16, 128)}
STEPS = {"8x512": 3, "16x128": 6}
METHODS = ("pkd+soft", "pkd+soft:sdpa", "minilm", "reads-6")
SHAPE = {
    "vocab_size": 8000,
    "hidden_size": 384,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "num_labels": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TEMPERATURE, BETA = 4.0, 100.0


def main(methods: tuple[str, ...]) -> None:
    """Print medians and ratios of every method and shape."""
    print(
        f"{'':<18}{'gkd s':>9}{'hand s':>9}{'speed':>8}{'gkd MiB':>10}{'hand MiB':>10}{'memory':>8}"
    )
    for method, size in itertools.product(methods, SHAPES):
        sides = {"gkd": [], "hand": []}
        for _ in range(ROUNDS):
            for side, results in sides.items():
                command = [sys.executable, __file__, method, size, side]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                results.append(json.loads(done.stdout))
        show(f"{method} {size}", sides)


def show(name: str, sides: dict[str, list[dict[str, float]]]) -> None:
    """Print a line, and complain if the two sides computed different losses."""

    def median(side: str, key: str) -> float:
        return statistics.median(result[key] for result in sides[side])

    pairs = list(zip(sides["gkd"], sides["hand"], strict=True))
    speed = statistics.median(hand["seconds"] / gkd["seconds"] for gkd, hand in pairs)
    memory = statistics.median(gkd["memory"] / hand["memory"] for gkd, hand in pairs)
    print(
        f"{name:<22}{median('gkd', 'seconds'):>9.3f}{median('hand', 'seconds'):>9.3f}{speed:>9.2f}"
        f"{median('gkd', 'memory'):>9.0f}{median('hand', 'memory'):>9.0f}{memory:>9.2f}"
    )
    losses = [sides[side][0]["loss"] for side in sides]
    if abs(losses[0] - losses[1]) > 1e-3 * abs(losses[1]):
        print(f"  the losses differ: {losses[0]:.6f} and {losses[1]:.6f}")


def measure(method: str, size: str, side: str) -> None:
    """Run one side in this process and print what it took.

    Memory is the peak of the process, less what it had before the first step.
    """
    import torch

    rows, length = SHAPES[size]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, SHAPE["vocab_size"], (rows, length), generator=generator)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    makers = {"gkd": gkd_step, "hand": hand_step}
    step = makers[side](method, inputs)
    before = resident()
    times, loss = [], None
    for _ in range(1 + STEPS[size]):
        start = time.perf_counter()
        loss = step() if loss is None else (step(), loss)[1]
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {"seconds": statistics.median(times[1:]), "memory": peak - before, "loss": float(loss)}
    print(json.dumps(result))


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def models(attention: str):
    """Return teacher and student."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    teacher = BertForSequenceClassification(BertConfig(**SHAPE, num_hidden_layers=12)).eval()
    student = BertForSequenceClassification(BertConfig(**SHAPE, num_hidden_layers=6)).train()
    for model in (teacher, student):
        model.set_attn_implementation(attention)
    return teacher.requires_grad_(False), student


def hand_step(method: str, inputs):
    """Return a step as one writes it by hand."""
    import torch
    from torch.nn import functional

    method, _, given = method.partition(":")
    attention = given or ("sdpa" if method == "reads-6" else "eager")
    flags = {
        "pkd+soft": {"output_hidden_states": True},
        "minilm": {"output_attentions": True},
        "reads-6": {"output_hidden_states": True},
    }[method]
    teacher, student = models(attention)
    if method == "reads-6":

        def teacher_only():
            with torch.no_grad():
                return teacher(**inputs, **flags).hidden_states[6].mean()

        return teacher_only
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, fused=True)
    values = {}
    if method == "minilm":
        for name, model in (("teacher", teacher), ("student", student)):
            model.bert.encoder.layer[-1].attention.self.value.register_forward_hook(
                lambda module, args, output, name=name: values.__setitem__(name, output)
            )

    def pkd(known, learned):
        distance = sum(
            functional.mse_loss(
                functional.normalize(learned.hidden_states[i][:, 0], dim=-1),
                functional.normalize(known.hidden_states[2 * i][:, 0], dim=-1),
            )
            for i in range(1, 6)
        )
        soft = functional.kl_div(
            functional.log_softmax(learned.logits / TEMPERATURE, -1),
            functional.log_softmax(known.logits / TEMPERATURE, -1),
            log_target=True,
            reduction="batchmean",
        )
        return BETA * distance / 5 + TEMPERATURE**2 * soft

    def relation(value):
        heads = value.unflatten(-1, (12, 32)).transpose(1, 2)
        return heads @ heads.transpose(-1, -2) / 32**0.5

    def divergence(p, log_q):
        return functional.kl_div(log_q, p, reduction="none").sum(-1).mean()

    def minilm(known, learned):
        attention = divergence(known.attentions[-1], learned.attentions[-1].log())
        value = divergence(
            relation(values["teacher"]).softmax(-1), relation(values["student"]).log_softmax(-1)
        )
        return attention + value

    objective = pkd if method == "pkd+soft" else minilm

    def step():
        with torch.no_grad():
            known = teacher(**inputs, **flags)
        loss = objective(known, student(**inputs, **flags))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def gkd_step(method: str, inputs):
    """Return a step of gkd's trainer."""
    import torch

    from gkd_core.api import Batch, ModelInfo, Models, Schedule, Step
    from gkd_core.config.schema import TrainingConfig
    from gkd_core.hooks.extraction import Extractor
    from gkd_core.hooks.paths import Capture
    from gkd_core.models.sites import find_sites
    from gkd_core.objective.objective import Objective
    from gkd_core.objective.passes import ActiveMethod
    from gkd_core.optim.engine import LocalEngine
    from gkd_core.plugins import registry
    from gkd_core.training.step import train_step

    teacher, student = models("sdpa")
    reader = Extractor(teacher, find_sites(teacher))
    if method == "reads-6":
        wanted = Capture("hidden", 6)

        def teacher_only():
            with torch.no_grad():
                return reader.run(frozenset([wanted]), inputs)[wanted].mean()

        return teacher_only
    infos = Models(
        ModelInfo.read("student", student.config, SHAPE["num_labels"]),
        ModelInfo.read("teacher", teacher.config, SHAPE["num_labels"]),
    )
    members = []
    for name in method.partition(":")[0].split("+"):
        cls = registry().method(name)
        members.append(
            ActiveMethod(name, Schedule.parse(1.0), (cls(),), (infos,), torch.Generator())
        )
    config = TrainingConfig(lr=5e-5, lr_schedule="constant", warmup=0.0)
    stage = SimpleNamespace(
        objective=Objective(members),
        student=Extractor(student, find_sites(student)),
        teachers=[reader],
        engine=LocalEngine([student], config, 100, torch.device("cpu")),
        feature_offload=None,
    )
    indices = itertools.count()

    def step():
        where = Step(next(indices), 100, 0, "benchmark", torch.default_generator)
        rows = Batch(inputs, None, torch.arange(len(inputs["input_ids"])))
        return train_step(stage, [rows], where).losses["total"]

    return step


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[3] in ("gkd", "hand"):
        measure(*sys.argv[1:])
    else:
        main(tuple(sys.argv[1:]) or METHODS)
