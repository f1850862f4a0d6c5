"""Steps of methods whose teacher's answers are kept or not, against steps of `hard`.

All take a step in turn; printed are the medians of the processor's time and of the ratios. A
teacher of 6 layers and a student of 3, of width 384, read 16 rows of 20 to 40 words:

    python tests/benchmarks/kept_answers.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from probe_cost import write_world

from gkd_core.config.resolve import resolve
from gkd_core.contract.step import Step
from gkd_core.data.loader import iterate
from gkd_core.plugins import registry
from gkd_core.runs.run import prepare_run
from gkd_core.training.assembly import build_stage
from gkd_core.training.keeping import keep_answers
from gkd_core.training.step import train_step

STEPS, WARM_UP = 10, 2
SIDES = {
    "hard": ("hard", False),
    "kd, kept": ("kd", True),
    "kd, live": ("kd", False),
    "pkd+soft, kept": ("pkd+soft", True),
    "pkd+soft, live": ("pkd+soft", False),
}


def main() -> None:
    """Print the time of a step of each side, and its ratio to `hard`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_world(folder)
        steps = {side: make(folder, side, *how) for side, how in SIDES.items()}
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(WARM_UP + STEPS):
            for side, step in steps.items():
                begun = time.process_time()
                step()
                times[side].append(time.process_time() - begun)
    for side, spent in times.items():
        pairs = list(zip(spent, times["hard"], strict=True))[WARM_UP:]
        ratio = statistics.median(own / hard for own, hard in pairs)
        print(f"{side:<14} {statistics.median(spent[WARM_UP:]):.3f} s / step, {ratio:.3f} of hard")


def make(folder: Path, side: str, method: str, keeps: bool) -> Callable[[], None]:
    """Return what takes the next step of a run.

    Args:
        folder: Where teacher and rows are.
        side: Name of the run.
        method: Its method.
        keeps: Whether the teacher is asked once.
    """
    settings = [f"method={method}", "student.layers=3", "training.batch_size=16", "baseline=false"]
    settings += [f"task.train={folder / 'rows.csv'}", "task.rows=256"]
    teacher = [{"name": "teacher", "model": str(folder / "teacher")}]
    resolved = resolve(registry(), settings=settings, flags={"teachers": (teacher, "--teacher")})
    spec = prepare_run(resolved, registry())[-1]
    stage = build_stage(spec, registry(), folder / side, None)
    if keeps:
        stage.kept = keep_answers(stage, ["teacher"], print)
    stage.student.model.train()
    total = WARM_UP + STEPS
    batches = iterate(stage.train, stage.collator, stage.sampler, 0, total)
    generator = stage.objective.members[0].generator

    def step() -> None:
        epoch, own = next(batches)
        train_step(stage, own, Step(0, total, epoch, stage.name, generator)).read()

    return step


if __name__ == "__main__":
    main()
