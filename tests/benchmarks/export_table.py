"""Students of several architectures as ONNX and int8: as good, as fast and as large as what?

Students of 2 blocks and width 128 are trained on rows of SST-2 (BERT and DistilBERT on the labels,
GPT-2 and Llama on the sentences), then exported, verified on held-out rows, and timed in turn with
batches of 8 rows of 64 tokens. A directory of a model such as MiniLM-L6 is trained and exported
likewise:

    python tests/benchmarks/export_table.py SST2_DIR [MODEL_DIR]
"""

from __future__ import annotations

import contextlib
import csv
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import gkd_core
from gkd_core.analysis.finished_run import FinishedRun
from gkd_core.data.vocabulary import train_tokenizer
from gkd_core.deploy.bench import bench
from gkd_core.deploy.export import ExportOptions, export_student
from gkd_core.plugins import registry

TRAIN, TEST, LENGTH = 3000, 1000, 64
ENCODERS, DECODERS = ("bert", "distilbert"), ("gpt2", "llama")
FORMS = {"onnx": ExportOptions("onnx", accept=True), "int8": ExportOptions("onnx", True, True)}
SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
WIDTHS = {"bert": "intermediate_size", "llama": "intermediate_size", "distilbert": "hidden_dim"}
HEADINGS = "| student | form | largest difference | metric (student's) | time | size |"


def main() -> None:
    """Print a table with a line for each student and form."""
    rows, *model = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    lines = [HEADINGS, "|---|---|--:|--:|--:|--:|"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(rows, folder)
        for family in (*ENCODERS, *DECODERS):
            place = write_model(family, folder)
            lines += lines_of(family, place, folder, family in DECODERS)
        for place in model:
            lines += lines_of(place.name, place, folder, False)
    print("\n".join(lines))


def write_rows(source: Path, folder: Path) -> None:
    """Write labeled rows to train and to test, and their sentences alone."""
    for name, file, number in (("train", "train.tsv", TRAIN), ("test", "dev.tsv", TEST)):
        with (source / file).open(newline="") as read:
            found = list(csv.DictReader(read, delimiter="\t", quoting=csv.QUOTE_NONE))[:number]
        labeled = [json.dumps({"text": r["sentence"], "label": int(r["label"])}) for r in found]
        (folder / f"{name}.jsonl").write_text("\n".join(labeled) + "\n")
        (folder / f"{name}.txt").write_text("\n".join(r["sentence"] for r in found) + "\n")


def write_model(family: str, folder: Path) -> Path:
    """Write a model with random weights, and a tokenizer trained on the sentences."""
    place = folder / f"{family}-start"
    texts = (folder / "train.txt").read_text().splitlines()
    tokenizer = train_tokenizer(texts, 4000, SHAPE["max_position_embeddings"])
    if family in DECODERS:  # GPT-2 would add segment ids, which its graph does not read
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    own = {WIDTHS[family]: 512} if family in WIDTHS else {}
    special = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.sep_token_id)
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), pad_token_id=0, **SHAPE, **own, **special
    )
    auto = AutoModelForCausalLM if family in DECODERS else AutoModelForSequenceClassification
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def lines_of(name: str, start: Path, folder: Path, writes: bool) -> Iterator[str]:
    """Train and export a student; yield a line of the table for each form."""
    end = "txt" if writes else "jsonl"
    settings = {
        "task.train": str(folder / f"train.{end}"),
        "task.test": str(folder / f"test.{end}"),
        "task.kind": "causal-lm" if writes else "classification",
        "task.max_length": LENGTH,
        "training.epochs": 3 if start.parent == folder else 1,
        "training.lr": 1e-3 if start.parent == folder else 1e-4,
    }
    run = folder / name
    gkd_core.run(student=str(start), method="hard", output=run, settings=settings)
    found, places = FinishedRun.read(run, registry()), {}
    for form, options in FORMS.items():
        places[form] = folder / f"{name}-{form}"
        export_student(found, registry(), places[form], options, lambda _: contextlib.nullcontext())
    names = [str(run / "student"), *map(str, places.values())]
    measured = bench(names, [8], [LENGTH], 20, 1, lambda _: None)
    sizes = list(measured.sizes.values())
    for number, (form, place) in enumerate(places.items(), start=1):
        said = json.loads((place / "lineage.json").read_text())["verification"]
        time, size = measured.measured[number].ratio, sizes[number] / sizes[0]
        both = f"{said['metric']} {said['after']:.4f} ({said['before']:.4f})"
        yield f"| {name} | {form} | {said['difference']:.2g} | {both} | {time:.2f} | {size:.2f} |"


if __name__ == "__main__":
    main()
