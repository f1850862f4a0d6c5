"""Seconds to the first step and resident memory of a run with many labeled rows, and again.

Each run is a process of its own, which ends after its first step: a first start of few rows, then
a first and a second start of many. Rows are 6 to 14 of the 4,000 commonest words of a made-up
language (Zipf's law); teacher and student are tiny, so that what is left is the data:

    python tests/benchmarks/many_rows.py
    python tests/benchmarks/many_rows.py --rows 100000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path

FEW = 10_000
WORDS = 4_000


def main() -> None:
    """Print what each start takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--method", default="kd")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        write_model(folder / "teacher")
        few, many = (write_rows(folder, number) for number in (FEW, options.rows))
        starts = {
            f"{FEW:,} rows": start(folder, few, options.method),
            f"{options.rows:,} rows": start(folder, many, options.method),
            f"{options.rows:,} rows, second start": start(folder, many, options.method),
        }
    base = starts[f"{FEW:,} rows"]
    for what, found in starts.items():
        print(
            f"{what:<34} first step after {found['seconds']:6.1f} s ({found['cpu']:6.1f} s of the "
            f"processor), data {found['data']:6.1f} s, resident {found['resident']:6,.0f} MB "
            f"({found['resident'] - base['resident']:+,.0f}), peak {found['peak']:6,.0f} MB"
        )


def start(folder: Path, rows: Path, method: str) -> dict[str, float]:
    """Return what a run takes to its first step, in a process of its own."""
    command = [sys.executable, __file__, "--child", str(folder), str(rows), method]
    environment = os.environ | {"GKD_CACHE": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def first_step(folder: Path, rows: Path, method: str) -> None:
    """Run to the first step in this process, and print what that took."""
    begun = time.perf_counter()
    import gkd_core.distillation.conduct  # noqa: F401  the imports count as the start of Python
    from gkd_core.cli import main as gkd
    from gkd_core.training import loop
    from gkd_core.training.step import train_step

    imported = time.perf_counter()

    def stop_after(*arguments: object) -> None:
        train_step(*arguments)  # type: ignore[arg-type]
        now, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        found = {
            "seconds": now - begun,
            "data": now - imported,
            "cpu": used.ru_utime + used.ru_stime,
            "resident": _resident(),
            "peak": used.ru_maxrss * 1024 / 1e6,
        }
        sys.stderr.flush()
        print(json.dumps(found), flush=True)
        os._exit(0)

    loop.train_step = stop_after  # type: ignore[assignment]
    model = ["--teacher", str(folder / "teacher"), "--student-layers", "1"]
    output = ["--output", str(folder / "run"), "--overwrite", "--set", "baseline=false"]
    gkd(["run", "--method", method, *model, "--data", str(rows), *output])


def _resident() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def words() -> list[str]:
    """Return the words of the language, the commonest first."""
    draw = random.Random(0)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er")]
    found = {
        "".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3)))) for _ in range(9 * WORDS)
    }
    return sorted(found)[:: max(1, len(found) // WORDS)][:WORDS]


def write_rows(folder: Path, number: int) -> Path:
    """Write labeled rows."""
    draw, known = random.Random(number), words()
    shares = list(accumulate(1 / (rank + 3) for rank in range(len(known))))
    path = folder / f"rows-{number}.jsonl"
    with path.open("w") as file:
        for _ in range(number):
            text = " ".join(draw.choices(known, cum_weights=shares, k=draw.randint(6, 14)))
            file.write(json.dumps({"text": text, "label": draw.choice(("no", "yes"))}) + "\n")
    return path


def write_model(folder: Path) -> None:
    """Write a teacher with random weights and a tokenizer of word pieces."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate(special + words())}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {f"{name}_token": token for name, token in zip(names, special, strict=True)}
    PreTrainedTokenizerFast(tokenizer_object=made, **tokens).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        num_labels=2,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    config.id2label, config.label2id = {0: "no", 1: "yes"}, {"no": 0, "yes": 1}
    BertForSequenceClassification(config).save_pretrained(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        first_step(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        main()
