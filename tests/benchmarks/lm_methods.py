"""How far a small student is from its teacher on held-out text, before and after each method.

The teacher is the embedded task's decoder; the student has half of its blocks. Every method of
language models takes the same steps. Usage: python tests/benchmarks/lm_methods.py [STEPS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

import gkd_core

STEPS = 60
WRITES = {"rollout.engine": "generate", "rollout.student": 1.0}
LENGTHS = {"prompt_tokens": 8, "max_new_tokens": 16}
HALF = {"rollout.engine": "generate", "rollout.student": 0.5}

CASES = {
    "hard": {},
    **{
        f"soft, {name}": {"method": "soft", "soft.divergence": name}
        for name in (
            *("kl", "reverse-kl", "js", "skew-kl", "skew-reverse-kl"),
            *("adaptive-kl", "total-variation"),
        )
    },
    "kd": {},
    "dpkd": {},
    "mft": {},
    "on-policy, half": {"method": "soft", "soft.divergence": "js", **HALF},
    "on-policy, all": {"method": "soft", "soft.divergence": "js", **WRITES},
    "distillm": {
        "method": "soft",
        "soft.divergence": "skew-kl",
        "rollout.engine": "generate",
        "rollout.adaptive": True,
        "rollout.replay": 1000,
    },
    "opd": WRITES,
    "minillm": HALF,
    "seqkd": {"method": "hard", "writing.ended": False},
    "uld": {"method": "hard+uld"},
    "gold": {"method": "gold"},
    "dskd": {"method": "0.5*hard+0.5*dskd", "dskd.temperature": 2.0},
}
"""The settings of each row of the table; its name is the method unless they say it."""


def divergence(folder: Path) -> float:
    """Return the mean KL(teacher || student) of a token of the test rows."""
    table = pq.read_table(folder / "predictions" / "student.parquet")
    return sum(table["kl"].to_pylist()) / sum(table["tokens"].to_pylist())


def measured(folder: Path, name: str, case: dict, steps: int, lr: float) -> tuple[float, float]:
    """Train a student; return its divergence and the seconds of the training."""
    settings = {
        "task.kind": "causal-lm",
        "task.rows": 2000,
        "training.steps": steps,
        "training.lr": lr,
        "output.reuse": False,
        "output.tensorboard": False,
        "baseline": False,
        "training.keep_best": False,
        **{key: value for key, value in case.items() if key != "method"},
    }
    for table in {key.partition(".")[0] for key in case} & {"rollout", "writing"}:
        settings |= {f"{table}.{key}": value for key, value in LENGTHS.items()}
    begun = time.perf_counter()
    gkd_core.run(student=2, method=case.get("method", name), output=folder, settings=settings)
    return divergence(folder), time.perf_counter() - begun


def main() -> None:
    """Print a line for each method."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    with tempfile.TemporaryDirectory() as place:
        before, _ = measured(Path(place) / "start", "soft", {}, 1, 1e-12)
        lines = [f"before: {before:.3f} nats per token", "| method | KL | s |", "|---|---|---|"]
        print("\n".join(lines), flush=True)
        for number, (name, case) in enumerate(CASES.items()):
            try:
                after, seconds = measured(Path(place) / str(number), name, case, steps, 1e-3)
            except gkd_core.errors.GkdError as error:
                print(f"| {name} | {error} | |", flush=True)
            else:
                print(f"| {name} | {after:.3f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
