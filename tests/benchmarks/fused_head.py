"""Time and peak memory of KL with both LM heads fused against the dense version in plain PyTorch.

`fused` is `kl`, `rule` the same divergence as a plugin writes it, for `divergence`. Each side runs
in a process of its own, in turn, several times; printed are the medians and their ratios. Forward
and backward over 8,192 tokens and a vocabulary of 32,000, from hidden states of width 512 (teacher)
and 384 (student) to the gradients of the student's hidden states and weight:

    python tests/benchmarks/fused_head.py
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

ROUNDS = 3
STEPS = 2
TOKENS, WORDS = 8192, 32000
TEACHER_WIDTH, STUDENT_WIDTH = 512, 384
TEMPERATURE = 2.0
MEASURES = (("seconds", "s / step"), ("memory", "MiB above the state before"))


def main() -> None:
    """Print medians and ratios."""
    sides = {"fused": [], "rule": [], "dense": []}
    for _ in range(ROUNDS):
        for side, results in sides.items():
            command = [sys.executable, __file__, side]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout))
    for key, unit in MEASURES:
        median = {s: statistics.median(r[key] for r in results) for s, results in sides.items()}
        ratios = [
            statistics.median(
                a[key] / b[key] for a, b in zip(sides[side], sides[other], strict=True)
            )
            for side, other in (("fused", "dense"), ("rule", "fused"))
        ]
        shown = "  ".join(f"{side} {value:9.3f}" for side, value in median.items())
        print(f"{unit:<27} {shown}  fused/dense {ratios[0]:.3f}  rule/fused {ratios[1]:.3f}")
    for key in ("loss", "gradient"):
        shown = "  ".join(f"{side} {results[0][key]:9.6f}" for side, results in sides.items())
        print(f"{key:<27} {shown}")


def measure(side: str) -> None:
    """Run one side in this process and print what it took."""
    import torch

    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, STUDENT_WIDTH).requires_grad_()
    weight = (torch.randn(WORDS, STUDENT_WIDTH) * 0.05).requires_grad_()
    known = torch.randn(TOKENS, TEACHER_WIDTH), torch.randn(WORDS, TEACHER_WIDTH) * 0.05
    step = {"fused": fused_step, "rule": rule_step, "dense": dense_step}[side]
    step(hidden[:8], weight, *(known[0][:8], known[1])).backward()  # what is made on first use
    before = peak()
    times = []
    for _ in range(STEPS):
        hidden.grad = weight.grad = None
        start = time.perf_counter()
        loss = step(hidden, weight, *known)
        loss.backward()
        times.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "seconds": min(times),
                "memory": peak() - before,
                "loss": loss.item(),
                "gradient": weight.grad.norm().item() + hidden.grad.norm().item(),
            }
        )
    )


def peak() -> float:
    """Return the peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def dense_step(hidden, weight, known_hidden, known_weight):
    """Return the loss as one writes it by hand."""
    import torch
    from torch.nn import functional

    with torch.no_grad():
        target = functional.linear(known_hidden, known_weight)
    logits = functional.linear(hidden, weight)
    divergence = functional.kl_div(
        functional.log_softmax(logits / TEMPERATURE, -1),
        functional.log_softmax(target / TEMPERATURE, -1),
        log_target=True,
        reduction="batchmean",
    )
    return TEMPERATURE**2 * divergence


def rule_step(*tensors):
    """Return the loss of a rule for `divergence`."""
    from gkd_core.api import divergence

    @divergence
    def own_kl(log_student, log_teacher, sum):
        return sum(log_teacher.exp() * (log_teacher - log_student))

    return fused_step(*tensors, loss=own_kl)


def fused_step(hidden, weight, known_hidden, known_weight, loss=None):
    """Return the loss of gkd."""
    import torch

    from gkd_core.api import Items
    from gkd_core.losses import LinearLogits, kl

    over = Items.where("token", torch.ones(len(hidden), dtype=torch.bool))
    student = LinearLogits(hidden, weight, None)
    teacher = LinearLogits(known_hidden, known_weight, None)
    return (loss or kl)(student, teacher, over, TEMPERATURE).mean()


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
