"""Writes small runs of the gkd that is installed, for every later version to go on with.

    python tests/compatibility/make_runs.py tests/compatibility/v0.2

is run once with a version and then no more: what is there is as that version wrote it (v0.1 is from
the script of that time, whose models were larger). Names of runs make these only. The runs have no
dropout and a large `training.eps`, so that a processor which rounds differently ends
close to the weights kept here; the processor that wrote them ends with the same bits.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

RUNS = {
    "interrupted": {"method": "rail-kd+soft"},
    "ranks": {"method": "rail-kd+soft"},
    "stages": {},
    "finished": {"method": "pkd+soft", "baseline": "true"},
    "written": {
        "method": "opd",
        "task.kind": "causal-lm",
        "rollout.engine": "generate",
        "rollout.student": 1,
        "rollout.prompt_tokens": 2,
        "rollout.max_new_tokens": 3,
    },
}
STAGES = """
[[stages]]
name = "first"
method = "rail-kd+soft"
[[stages]]
name = "second"
method = "soft"
student.new_student = true
teacher.model = "stage:first"
teacher.keep = "disk"
"""
TRAINING = {
    "baseline": "false",
    "training.batch_size": 8,
    "training.epochs": 2,
    "training.lr": 0.3,
    "training.eps": 1.0,
    "training.evaluate_every": 3,
    "training.checkpoint_every": 3,
    "training.log_every": 1,
}
DIES = {
    "interrupted": ("distil", 5),
    "ranks": ("distil", 5),
    "stages": ("second", 4),
    "written": ("distil", 5),
}
"""The stage and step at which a run is killed; it is also kept as it ends if nothing kills it."""


SHAPE = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
    "initializer_range": 0.3,
}


def write_world(folder: Path) -> None:
    """Write rows, a teacher of four blocks, and one of two blocks that writes text."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{name}_token": words[index] for index, name in enumerate(names)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    config = BertConfig(
        vocab_size=len(words),
        num_hidden_layers=4,
        **SHAPE,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label={0: "even", 1: "odd"},
        label2id={"even": 0, "odd": 1},
    )
    torch.manual_seed(0)
    decoder = LlamaConfig(vocab_size=len(words), num_hidden_layers=2, **SHAPE, pad_token_id=0)
    decoder.eos_token_id = decoder.bos_token_id = None
    made_models = BertForSequenceClassification(config), LlamaForCausalLM(decoder)
    for name, model in zip(("teacher", "writer"), made_models, strict=True):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, first, last in (("train", 0, 24), ("validation", 24, 36), ("test", 36, 48)):
        rows = (
            {"text": " ".join("abcdefghij"[int(d)] for d in str(7919 * number)), "label": label}
            for number in range(first, last)
            for label in [("even", "odd")[number % 2]]
        )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def arguments(name: str, directory: str) -> list[str]:
    """Return the command line of a run."""
    found = ["run", "--output", directory]
    if name == "stages":
        Path("stages.toml").write_text(STAGES)
        found.append("stages.toml")
    data = {f"task.{n}": f"world/{n}.jsonl" for n in ("train", "validation", "test")}
    model, layers = ("writer", 1) if name == "written" else ("teacher", 2)
    shape = {"teacher.model": f"world/{model}", "student.layers": layers}
    for key, value in (data | shape | TRAINING | RUNS[name]).items():
        found += ["--set", f"{key}={value}"]
    return found


def execute(name: str, directory: str, dies: bool) -> None:
    """Run the command line, on two ranks for `ranks`, until it dies if it is to."""
    stage, step = DIES[name] if dies else ("", -1)
    command = [sys.executable, __file__, "--rank", stage, str(step), *arguments(name, directory)]
    if name == "ranks":
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command[1:1] = launcher
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode != 0) == dies, done.stdout + done.stderr


def forget_place(manifest: Path) -> None:
    """Make the paths of models in a manifest relative; nobody has them where they were."""
    from gkd_core import digest

    content = json.loads(manifest.read_text().replace(f"{Path.cwd()}/", ""))
    del content["digest"]
    own = {"digest": digest.of_value(content)}
    manifest.write_text(json.dumps(content | own, indent=1))


def run_here(stage: str, step: int, *command: str) -> None:
    """Run the command line in this process, which ends without a word before a step of a stage."""
    from gkd_core import cli
    from gkd_core.training import loop

    stock = loop.train_step

    def train_step(where, batches, now):
        if (now.stage, now.index) == (stage, step):
            os._exit(1)
        return stock(where, batches, now)

    loop.train_step = train_step
    cli.main(list(command))


def machine() -> dict[str, str]:
    """Return what decides the bits of a sum: the processor, its instructions, the library."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    return {
        "processor": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": version("torch"),
    }


def main(folder: Path, *names: str) -> None:
    """Write everything, or the runs of some names."""
    if not names:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    os.environ |= {"GKD_CACHE": "cache", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if not Path("world").exists():
        write_world(Path("world"))
    for name in names or RUNS:
        execute(name, f"ended/{name}", dies=False)
        if name in DIES:
            shutil.rmtree("cache/stages")  # or the run that dies would be copied from it
            execute(name, f"killed/{name}", dies=True)
    thin_out()
    Path("machine.json").write_text(json.dumps(machine(), indent=1) + "\n")


def thin_out() -> None:
    """Remove what no later version reads; of runs that are kept to compare with, nearly all."""
    for path in sorted(Path().rglob("*")):
        if path.name in ("tensorboard", "predictions", ".uses"):
            shutil.rmtree(path)
        elif path.name.endswith((".html", "outline.txt", "results.json", ".lock", ".lease")):
            path.unlink(missing_ok=True)
        elif path.name == "manifest.json":
            forget_place(path)
    for name in DIES:
        for path in Path("ended", name).rglob("*"):
            if path.is_file() and path.name != "done.json" and path.parent.name != "student":
                path.unlink()
    for path in Path("cache/stages").iterdir():
        path.write_text(path.read_text().replace(f"{Path.cwd()}/", ""))


if __name__ == "__main__":
    if sys.argv[1] == "--rank":
        run_here(sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
    else:
        main(Path(sys.argv[1]), *sys.argv[2:])
