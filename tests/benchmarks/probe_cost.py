"""What probes add to a run's time, at the default sampling and with all features.

A block is a few training steps followed by one measurement; the share of a method is the median
over blocks of measurement / (steps between measurements x step). A 6-layer teacher and a 3-layer
student of width 384 read 16 rows of 20 to 40 words:

    python tests/benchmarks/probe_cost.py
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from pathlib import Path

from gkd_core.config.resolve import resolve
from gkd_core.contract.step import Step
from gkd_core.data.loader import iterate
from gkd_core.plugins import registry
from gkd_core.runs.run import prepare_run
from gkd_core.tracking.recorder import Recorder
from gkd_core.training.assembly import build_stage
from gkd_core.training.step import train_step

METHODS = ("soft", "minilm", "tinybert")
BLOCKS, STEPS = 6, 3
WORDS = [f"w{number}" for number in range(7995)]
SHAPE = {
    "hidden_size": 384,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "intermediate_size": 1536,
}


def main() -> None:
    """Print the share of each method."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_world(folder)
        for method in METHODS:
            steps, measurements, every = measure(method, folder)
            shares = [m / (every * s) for m, s in zip(measurements, steps, strict=True)]
            print(
                f"{method:<10} step {statistics.median(steps):6.3f} s  measurement "
                f"{statistics.median(measurements):6.3f} s  every {every} steps: "
                f"{statistics.median(shares):.2%} of the time"
            )


def measure(method: str, folder: Path) -> tuple[list[float], list[float], int]:
    """Return the seconds of a step and of a measurement in each block, and the sampling."""
    settings = [f"method={method}", "student.layers=3", 'probe.features=["all"]']
    settings += [f"task.train={folder / 'rows.csv'}", "training.batch_size=16"]
    settings += ["baseline=false"]
    teacher = [{"name": "teacher", "model": str(folder / "teacher")}]
    resolved = resolve(registry(), settings=settings, flags={"teachers": (teacher, "--teacher")})
    spec = prepare_run(resolved, registry())[-1]
    stage = build_stage(spec, registry(), folder / method, None)
    recorder, total = Recorder([]), BLOCKS * (STEPS + 1)
    stage.student.model.train()
    batches = iterate(stage.train, stage.collator, stage.sampler, 0, total)
    times: tuple[list[float], list[float]] = ([], [])
    for block in range(BLOCKS):
        spent = []
        for index in range(block * STEPS, (block + 1) * STEPS):
            epoch, own = next(batches)
            step = Step(index, total, epoch, stage.name, stage.objective.members[0].generator)
            begun = time.perf_counter()
            train_step(stage, own, step)
            spent.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        stage.probes.measure(stage, own[0], step, recorder)
        times[0].append(statistics.mean(spent))
        times[1].append(time.perf_counter() - begun)
    return times[0][1:], times[1][1:], stage.probes.config.every


def write_world(folder: Path) -> None:
    """Write a teacher with random weights, and rows of random words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate(special + WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {f"{name}_token": token for name, token in zip(names, special, strict=True)}
    PreTrainedTokenizerFast(tokenizer_object=made, **tokens).save_pretrained(folder / "teacher")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), num_labels=2, **SHAPE)
    config.id2label, config.label2id = {0: "0", 1: "1"}, {"0": 0, "1": 1}
    BertForSequenceClassification(config).save_pretrained(folder / "teacher")
    draw = random.Random(0)
    rows = [
        f"{' '.join(draw.choices(WORDS, k=draw.randint(20, 40)))},{draw.randint(0, 1)}"
        for _ in range(1600)
    ]
    (folder / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")


if __name__ == "__main__":
    main()
