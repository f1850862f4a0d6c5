"""Time and memory of a training step of every method, relative to `hard`.

A 12-layer teacher and a 6-layer student of width 384 classify 16 x 128 random tokens. Each method,
with its default options, trains for a few steps in a process of its own, through the command
line; a combiner of several teachers is given two. Printed is a table in Markdown: medians over the
rounds of the median time per step, and of the peak of resident memory:

    python tests/benchmarks/method_cost.py
    python tests/benchmarks/method_cost.py pkd tinybert --rounds 1 --layers 4 --width 64
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROWS, LENGTH = 16, 128
WORDS = 8000
CLASSES = 4
WARM_UP, STEPS = 2, 8
BASE = "hard"


class Cost(NamedTuple):
    """What a step takes: seconds, and MiB of resident memory at the peak of its process."""

    seconds: float
    memory: float


def main() -> None:
    """Print the table."""
    options = _options()
    methods = dict.fromkeys([BASE, *(options.methods or _methods())])
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        _write_world(world, options.layers, options.width)
        rounds = [dict(_round(world, methods)) for _ in range(options.rounds)]
    costs = {name: _median([found[name] for found in rounds]) for name in rounds[0]}
    for line in table(costs):
        print(line)


def table(costs: Mapping[str, Cost]) -> Iterator[str]:
    """Yield the lines of the table; the cheapest method comes first."""
    base = costs[BASE]
    yield "| method | seconds per step | relative | peak MiB | relative |"
    yield "|---|---|---|---|---|"
    for name, cost in sorted(costs.items(), key=lambda item: item[1].seconds):
        seconds, memory = cost.seconds / base.seconds, cost.memory / base.memory
        yield (
            f"| `{name}` | {cost.seconds:.3f} | {seconds:.2f} | {cost.memory:.0f} | {memory:.2f} |"
        )


def _round(world: Path, methods: Sequence[str]) -> Iterator[tuple[str, Cost]]:
    """Measure every method once, one after the other, so that drifts of the machine even out."""
    for method in methods:
        print(f"measuring {method}", file=sys.stderr, flush=True)
        yield method, _measure(world, method)


def _measure(world: Path, method: str) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        file = Path(folder) / "run.toml"
        file.write_text(_run_file(world, method))
        command = [sys.executable, "-m", "gkd_core.cli", "run", str(file), "--output", str(run)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        said = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{method} failed:\n{said}")
        entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [entry["samples_per_second"] for entry in entries if "loss/total" in entry]
    return Cost(ROWS / statistics.median(rates[WARM_UP:]), usage.ru_maxrss / 1024)


def _run_file(world: Path, method: str) -> str:
    """Return a run of a method, or of the soft labels of two teachers under a combiner."""
    from gkd_core.plugins import registry

    combines = method in registry().combiners
    names = ["one", "two"] if combines else ["one"]
    teachers = "".join(
        f'[[teachers]]\nname = "{name}"\nmodel = {json.dumps(str(world / "teacher"))}\n'
        for name in names
    )
    return f"""
method = {json.dumps(f"{method}(soft)" if combines else method)}
baseline = false
{teachers}
[student]
model = {json.dumps(str(world / "student"))}
[task]
train = {json.dumps(str(world / "train.jsonl"))}
validation = {json.dumps(str(world / "validation.jsonl"))}
max_length = {LENGTH}
[training]
batch_size = {ROWS}
steps = {WARM_UP + STEPS}
evaluate_every = {WARM_UP + STEPS}
log_every = 1
keep_best = false
[output]
tensorboard = false
[parallel]
device = "cpu"
"""


def _write_world(world: Path, layers: int, width: int) -> None:
    """Write a teacher, a student of half its depth, and rows of equal length."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [f"w{number}" for number in range(WORDS - len(special))]
    ids = {word: number for number, word in enumerate(special + words)}
    made = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    frame = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=frame
    )
    names = {f"{token[1:-1].lower()}_token": token for token in special}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    labels = {number: str(number) for number in range(CLASSES)}
    torch.manual_seed(0)
    for name, depth in (("teacher", layers), ("student", layers // 2)):
        shape = BertConfig(
            vocab_size=WORDS,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=width // 64 or 1,
            intermediate_size=4 * width,
            id2label=labels,
            label2id={label: number for number, label in labels.items()},
        )
        BertForSequenceClassification(shape).save_pretrained(world / name)
        tokenizer.save_pretrained(world / name)
    draw = random.Random(0)
    for name, batches in (("train", WARM_UP + STEPS), ("validation", 1)):
        rows = (
            {"text": " ".join(draw.choices(words, k=LENGTH - 2)), "label": str(row % CLASSES)}
            for row in range(batches * ROWS)
        )
        (world / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(*(statistics.median(values) for values in zip(*costs, strict=True)))


def _methods() -> Sequence[str]:
    """Return the installed methods and combiners, whichever package they are from."""
    from gkd_core.plugins import registry

    # The rows have no sources to route by; it would cost what `average` does.
    return [*registry().methods, *(name for name in registry().combiners if name != "route")]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("methods", nargs="*", help="Methods and combiners; all if none is named.")
    parser.add_argument("--rounds", type=int, default=3, help="Times each of them is measured.")
    parser.add_argument("--layers", type=int, default=12, help="Blocks of the teacher.")
    parser.add_argument("--width", type=int, default=384, help="Hidden size of both models.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
