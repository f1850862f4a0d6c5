"""Speed and memory of `soft` on one GPU: tokens per second, and the share of the device's peak.

Teacher and student have the shape of Llama 3.2 1B and random weights; 32 x 1,024 tokens per step,
in bf16. Each case is a run of `gkd run` in a process of its own, stopped after a few steps; what a
step computes is `gkd plan`'s count for the same settings. A profile of one more step, on standard
error, lists the kernels that take most time. The peak is the vendor's, in TFLOP/s:

    python tests/benchmarks/gpu_throughput.py --peak 989 [--case CASE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WARM_UP, STEPS = 3, 6
ROWS, LENGTH = 32, 1024
WORDS = 20_000
SHAPE = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
SPLIT = "training.accumulation=2"
CASES = {
    "kl": [SPLIT],
    "js": [SPLIT, "soft.divergence=js"],
    "kl-whole-batch": ["training.gradient_checkpointing=true"],
}
COMMON = [
    *("task.kind=causal-lm", f"task.max_length={LENGTH}", "student.init=random"),
    *("training.precision=bf16", f"training.batch_size={ROWS}", "teacher.dtype=bf16"),
    f"training.steps={WARM_UP + STEPS + 1}",
]
LINES = 25
"""Kernels of the profile that are listed."""


def main() -> None:
    """Print a table of the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=CASES, help="repeatable; default: all")
    parser.add_argument("--peak", type=float, required=True, help="TFLOP/s of the device in bf16")
    given = parser.parse_args()
    print(
        "| case | s per step | tokens per s | TFLOP per step | of the peak | peak GiB | planned |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        _write_world(Path(folder))
        for name in given.case or CASES:
            arguments = _arguments(Path(folder), CASES[name])
            planned, found = _planned_and_measured(arguments)
            print(_row(name, planned, found, given.peak), flush=True)
            print(found["profile"], file=sys.stderr, flush=True)


def _row(name: str, planned: dict[str, float], found: dict[str, float], peak: float) -> str:
    seconds, work = found["seconds"], planned["flops"] / 1e12
    return (
        f"| {name} | {seconds:.3f} | {ROWS * LENGTH / seconds:,.0f} | {work:.0f} "
        f"| {work / seconds / peak:.1%} | {found['peak'] / 2**30:.1f} "
        f"| {planned['peak'] / 2**30:.1f} |"
    )


def _planned_and_measured(arguments: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Return what `gkd plan` says, which needs no GPU, and what a run took meanwhile."""
    plan = [sys.executable, "-m", "gkd_core.cli", "plan", "--json", *arguments]
    with tempfile.TemporaryDirectory() as output:
        run = [sys.executable, __file__, "measure", "--no-baseline", "--output", f"{output}/run"]
        started = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            for command in (plan, [*run, *arguments])
        ]
        planned, found = (process.communicate()[0] for process in started)
    measured = [line for line in found.splitlines() if line.startswith('{"seconds"')]
    if not measured:
        raise SystemExit(found)
    return json.loads(planned)[0], json.loads(measured[0])


def _arguments(folder: Path, settings: list[str]) -> list[str]:
    given = [part for setting in (*COMMON, *settings) for part in ("--set", setting)]
    named = ["--teacher", str(folder / "teacher"), "--data", str(folder / "text.txt")]
    return [*named, "--method", "soft", *given]


def _write_world(folder: Path) -> None:
    """Write a teacher with random weights, and texts longer than they are cut to."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {f"w{number}": number + 2 for number in range(WORDS)}
    made = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, **words}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=LENGTH
    )
    tokenizer.save_pretrained(folder / "teacher")
    config = LlamaConfig(**SHAPE, max_position_embeddings=LENGTH)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        teacher = LlamaForCausalLM(config)
    teacher.to(torch.bfloat16).save_pretrained(folder / "teacher")
    draw, names = random.Random(0), list(words)
    count = 2 * ROWS * (WARM_UP + STEPS + 1)
    texts = (" ".join(draw.choices(names, k=LENGTH + 10)) for _ in range(count))
    (folder / "text.txt").write_text("".join(text + "\n" for text in texts))


def measure(arguments: list[str]) -> None:
    """Run `gkd` in this process; print what its steps took, and end."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from gkd_core.cli import main as gkd
    from gkd_core.training import loop

    stock = loop.train_step
    begun = 0.0
    on_gpu = torch.cuda.is_available()
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    profiler = profile(activities=[activity])

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def train_step(stage, batches, step):
        nonlocal begun
        if step.index == WARM_UP:
            begun = now()
        if step.index < WARM_UP + STEPS:
            return stock(stage, batches, step)
        seconds = (now() - begun) / STEPS
        peak = torch.cuda.max_memory_allocated() if on_gpu else 0
        with profiler:
            stock(stage, batches, step)
            now()
        order = f"self_{'cuda' if on_gpu else 'cpu'}_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=LINES)
        print(json.dumps({"seconds": seconds, "peak": peak, "profile": table}), flush=True)
        os._exit(0)

    loop.train_step = train_step
    gkd(["run", *arguments])


if __name__ == "__main__":
    measure(sys.argv[2:]) if sys.argv[1:2] == ["measure"] else main()
