"""Step time and peak memory of `kd` in gkd against a plain Hugging Face loop that does the same.

Each side runs in a process of its own, in turn, several times; printed are the medians and their
ratios. A 12-layer teacher and a 6-layer student of width 384 classify 16 x 128 random tokens:

    python tests/benchmarks/kd_overhead.py
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

ROUNDS = 5
STEPS = 8
WARM_UP = 2
ROWS, LENGTH = 16, 128
SHAPE = {
    "vocab_size": 8000,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "num_labels": 4,
}
TEMPERATURE, ALPHA = 4.0, 0.5


def main() -> None:
    """Print medians and ratios."""
    sides = {"gkd": [], "plain": []}
    for _ in range(ROUNDS):
        for side, results in sides.items():
            command = [sys.executable, __file__, side]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout))
    for key, unit in (("seconds", "s / step"), ("memory", "MiB peak resident memory")):
        median = {s: statistics.median(r[key] for r in results) for s, results in sides.items()}
        pairs = zip(sides["gkd"], sides["plain"], strict=True)
        ratio = statistics.median(a[key] / b[key] for a, b in pairs)
        print(
            f"{unit:<26} gkd {median['gkd']:8.3f}  plain {median['plain']:8.3f}  ratio {ratio:.3f}"
        )
    losses = {side: results[0]["loss"] for side, results in sides.items()}
    print(f"loss of the last step      gkd {losses['gkd']:.6f}  plain {losses['plain']:.6f}")


def measure(side: str) -> None:
    """Run one side in this process and print what it took."""
    step = gkd_step() if side == "gkd" else plain_step()
    times = []
    for _ in range(WARM_UP + STEPS):
        start = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "seconds": statistics.median(times[WARM_UP:]),
                "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "loss": float(loss),
            }
        )
    )


def models():
    """Return teacher and student."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    teacher = BertForSequenceClassification(BertConfig(**SHAPE, num_hidden_layers=12)).eval()
    student = BertForSequenceClassification(
        BertConfig(
            **SHAPE,
            num_hidden_layers=6,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    return teacher.requires_grad_(False), student.train()


def batch():
    """Return inputs and labels."""
    import torch

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, SHAPE["vocab_size"], (ROWS, LENGTH), generator=generator)
    labels = torch.randint(0, SHAPE["num_labels"], (ROWS,), generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, labels


def optimizer_groups(student):
    """Return the parameters with and without weight decay."""
    return [
        {"params": [p for p in student.parameters() if p.dim() >= 2], "weight_decay": 0.01},
        {"params": [p for p in student.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]


def plain_step():
    """Return a step as one writes it by hand with Hugging Face models."""
    import torch
    from torch.nn import functional

    teacher, student = models()
    optimizer = torch.optim.AdamW(optimizer_groups(student), lr=5e-5, fused=True)
    inputs, labels = batch()

    def step():
        with torch.no_grad():
            target = teacher(**inputs).logits
        logits = student(**inputs).logits
        soft = functional.kl_div(
            functional.log_softmax(logits / TEMPERATURE, -1),
            functional.log_softmax(target / TEMPERATURE, -1),
            log_target=True,
            reduction="batchmean",
        )
        hard = functional.cross_entropy(logits, labels)
        loss = ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * hard
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def gkd_step():
    """Return a step of gkd's trainer."""
    import itertools
    from types import SimpleNamespace

    import torch

    from gkd_core.api import Batch, ModelInfo, Models, Schedule, Step
    from gkd_core.config.schema import TrainingConfig
    from gkd_core.hooks.extraction import Extractor
    from gkd_core.models.sites import find_sites
    from gkd_core.objective.objective import Objective
    from gkd_core.objective.passes import ActiveMethod
    from gkd_core.optim.engine import LocalEngine
    from gkd_core.plugins import registry
    from gkd_core.training.step import train_step

    teacher, student = models()
    kd = registry().method("kd")
    infos = Models(
        ModelInfo.read("student", student.config, SHAPE["num_labels"]),
        ModelInfo.read("teacher", teacher.config, SHAPE["num_labels"]),
    )
    method = kd(kd.Config(temperature=TEMPERATURE, alpha=ALPHA))
    member = ActiveMethod("kd", Schedule.parse(1.0), (method,), (infos,), torch.Generator())
    config = TrainingConfig(lr=5e-5, lr_schedule="constant", warmup=0.0)
    stage = SimpleNamespace(
        objective=Objective([member]),
        student=Extractor(student, find_sites(student)),
        teachers=[Extractor(teacher, find_sites(teacher))],
        engine=LocalEngine([student], config, 100, torch.device("cpu")),
        feature_offload=None,
    )
    inputs, labels = batch()
    indices = itertools.count()

    def step():
        where = Step(next(indices), 100, 0, "benchmark", torch.default_generator)
        rows = Batch(inputs, labels, torch.arange(ROWS))
        return train_step(stage, [rows], where).losses["total"]

    return step


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
