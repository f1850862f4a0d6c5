"""Time and memory of a training step of gkd beside one of TRL's `GKDTrainer`.

The same teacher, student (12 of its blocks), batch and loss: the Jensen-Shannon divergence of
4 x 256 tokens, in fp32 with AdamW. Each side runs in a process of its own, in turn, several times;
printed are the medians, their ratios, and the first loss. With `chat`, the rows are questions and
answers of different lengths, and only the answers have loss.

    pip install trl
    python tests/benchmarks/trl_step.py MODEL [chat]
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

ROUNDS = 3
STEPS = 4
BLOCKS = 12
ROWS, TOKENS = 4, 256
BATCH = "batch.safetensors"
MEASURES = (("seconds", "s / step"), ("memory", "MiB, peak resident"))


def main() -> None:
    """Print medians and ratios."""
    model, kind = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "text"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_student(model, folder / "student")
        write_rows(model, folder / "rows.jsonl", kind)
        found = {"gkd": [], "trl": []}
        for _ in range(ROUNDS):
            for side, results in found.items():
                command = [sys.executable, __file__, "measure", side, str(model), name]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr)
                results.append(json.loads(done.stdout.splitlines()[-1]))
    for key, unit in MEASURES:
        gkd, trl = (statistics.median(each[key] for each in found[side]) for side in found)
        print(f"{unit:<20} gkd {gkd:9.3f}  trl {trl:9.3f}  gkd/trl {gkd / trl:.3f}")
    operations, fastest = found["gkd"][0]["operations"], peak()
    share = operations / fastest / statistics.median(each["seconds"] for each in found["gkd"])
    print(
        f"{'operations':<20} {operations:.3g} in a step of gkd; {share:.0%} of its time if all "
        f"were as fast as a large product of matrices, {fastest:.3g} in a second"
    )
    first = (f"{side} {results[0]['loss']:.6f}" for side, results in found.items())
    print(f"{'first loss':<20} {'  '.join(first)}")


def make_student(model: Path, folder: Path) -> None:
    """Save a student with evenly spaced blocks of the teacher."""
    from torch import nn
    from transformers import AutoModelForCausalLM, AutoTokenizer

    student = AutoModelForCausalLM.from_pretrained(model)
    layers = student.model.layers
    kept = [layers[round((n + 1) * len(layers) / BLOCKS) - 1] for n in range(BLOCKS)]
    student.model.layers = nn.ModuleList(kept)
    student.config.num_hidden_layers = BLOCKS
    if getattr(student.config, "layer_types", None):
        student.config.layer_types = student.config.layer_types[:BLOCKS]
    student.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def write_rows(model: Path, path: Path, kind: str) -> None:
    """Write long texts, or questions with answers; both sides cut them at the same length."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    source = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text()
    ids = tokenizer(source)["input_ids"]
    rows = []
    for row in range(ROWS):
        size = TOKENS if kind == "text" else TOKENS * (row + 1) // ROWS
        text = tokenizer.decode(ids[2 * row * TOKENS : 2 * row * TOKENS + 2 * size])
        half = len(text) // 4
        chat = {"prompt": text[:half].strip(), "response": text[half : 2 * half].strip()}
        rows.append({"text": text} if kind == "text" else chat)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure(side: str, model: str, folder: Path) -> None:
    """Train for some steps in this process; print what one took."""
    found = {"gkd": gkd_steps, "trl": trl_steps}[side](model, folder)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**found, "seconds": min(found["times"][1:]), "memory": memory}))


def peak() -> float:
    """Return the operations in a second of the fastest of some products of matrices."""
    import torch

    left, right = torch.randn(ROWS * TOKENS, 576), torch.randn(576, 49152)
    times = []
    for _ in range(8):
        begun = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - begun)
    return 2 * left.numel() * right.shape[1] / min(times)


def gkd_steps(model: str, folder: Path) -> dict[str, object]:
    """Take the steps of gkd; the first one counts operations and leaves its batch to the others."""
    from safetensors.torch import save_file
    from torch.utils.flop_counter import FlopCounterMode

    import gkd_core
    from gkd_core.training import loop

    times, stock, counter = [], loop.train_step, FlopCounterMode(display=False)

    def timed(stage, batches, step):
        (batch,) = batches
        if not times:
            save_file(as_trl_reads(batch), folder / BATCH)
        begun = time.perf_counter()
        with nullcontext() if times else counter:
            done = stock(stage, batches, step)
        times.append(time.perf_counter() - begun)
        return done

    loop.train_step = timed
    with tempfile.TemporaryDirectory() as output:
        settings = {
            "task.kind": "causal-lm",
            "task.max_length": TOKENS,
            "training.steps": STEPS,
            "training.batch_size": ROWS,
            "training.lr": 1e-5,
            "training.evaluate_every": STEPS,
            "training.log_every": 1,
            "soft.divergence": "js",
            "soft.temperature": 1.0,
            "teacher.keep": "none",
            "output.reuse": False,
            "task.validation": str(folder / "rows.jsonl"),
            "baseline": False,
        }
        gkd_core.run(
            teacher=model,
            student=str(folder / "student"),
            data=str(folder / "rows.jsonl"),
            method="soft",
            output=Path(output) / "run",
            settings=settings,
        )
        lines = (Path(output) / "run" / "metrics.jsonl").read_text().splitlines()
    first = next(entry for entry in map(json.loads, lines) if "loss/total" in entry)
    operations = counter.get_total_flops()
    return {"times": times, "loss": first["loss/total"], "operations": operations}


def as_trl_reads(batch) -> dict:
    """Return a batch of gkd, whose labels are shifted, as TRL reads it."""
    import torch

    ahead = torch.full_like(batch.labels[:, :1], -100)
    labels = torch.cat([ahead, batch.labels[:, :-1]], dim=1)
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    return {**inputs, "labels": labels}


def trl_steps(model: str, folder: Path) -> dict[str, object]:
    """Take the steps of TRL, all on the first batch of gkd."""
    import torch
    from datasets import Dataset
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    batch = load_file(folder / BATCH)
    times, losses = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            times.append(-time.perf_counter())

        def on_step_end(self, args, state, control, **kwargs):
            times[-1] += time.perf_counter()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                losses.append(logs["loss"])

    with tempfile.TemporaryDirectory() as output:
        config = GKDConfig(
            output_dir=output,
            per_device_train_batch_size=ROWS,
            max_steps=STEPS,
            learning_rate=1e-5,
            lmbda=0.0,
            beta=0.5,
            temperature=1.0,
            max_length=TOKENS,
            gradient_checkpointing=False,
            bf16=False,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
        )
        trainer = GKDTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32),
            teacher_model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=config,
            data_collator=lambda rows: dict(batch),
            train_dataset=Dataset.from_list([{"row": n} for n in range(ROWS)]),
            processing_class=AutoTokenizer.from_pretrained(model),
            callbacks=[Clock()],
        )
        trainer.train()
    return {"times": times, "loss": losses[0]}


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        measure(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main()
