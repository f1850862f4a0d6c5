"""What checkpoints add to a run's time, and how much of it is hashing and flushing.

A block is a few training steps and a checkpoint as it is written, and one without digests and
without `fsync`. The share is that of a run with the default interval, one checkpoint an epoch: a
6-layer teacher and a 3-layer student of width 384 read 16 rows of 20 to 40 words, AdamW:

    python tests/benchmarks/checkpoint_cost.py
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from probe_cost import write_world

from gkd_core import atomic
from gkd_core.config.resolve import resolve
from gkd_core.contract.step import Step
from gkd_core.data.loader import iterate
from gkd_core.plugins import registry
from gkd_core.runs.run import prepare_run
from gkd_core.training import checkpoint
from gkd_core.training.assembly import build_stage
from gkd_core.training.step import train_step

BLOCKS, STEPS = 9, 3
Times = dict[str, list[tuple[float, float]]]
"""Wall and processor seconds of a step, a whole checkpoint and a bare one."""


def main() -> None:
    """Print what a step and a checkpoint take, and the share of checkpoints in a run."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        write_world(Path(name))
        times, every = measure(Path(name))
    for clock, label in enumerate(("wall", "processor")):
        step, whole, bare = (
            statistics.median(each[clock] for each in times[name])
            for name in ("step", "whole", "bare")
        )
        print(
            f"{label:<10} step {step:.3f} s  checkpoint {whole:.3f} s  without digests and fsync "
            f"{bare:.3f} s  one in {every} steps: {whole / (every * step):.2%} of the time, "
            f"{(whole - bare) / (every * step):.2%} for digests and fsync"
        )


def measure(folder: Path) -> tuple[Times, int]:
    """Return what was measured, and the default number of steps between checkpoints."""
    settings = ["method=soft", "student.layers=3", f"task.train={folder / 'rows.csv'}"]
    settings += ["training.batch_size=16", "baseline=false"]
    teacher = [{"name": "teacher", "model": str(folder / "teacher")}]
    resolved = resolve(registry(), settings=settings, flags={"teachers": (teacher, "--teacher")})
    stage = build_stage(prepare_run(resolved, registry())[-1], registry(), folder / "run", None)
    total, progress = BLOCKS * STEPS, checkpoint.Progress()
    stage.student.model.train()
    batches = iterate(stage.train, stage.collator, stage.sampler, 0, total)
    times: Times = {"step": [], "whole": [], "bare": []}
    for index in range(total):
        epoch, own = next(batches)
        step = Step(index, total, epoch, stage.name, stage.objective.members[0].generator)
        times["step"].append(timed(lambda own=own, step=step: train_step(stage, own, step)))
        progress.step += 1
        if progress.step % STEPS == 0:
            times["whole"].append(timed(lambda: checkpoint.save_checkpoint(stage, progress)))
            shutil.rmtree(stage.directory / checkpoint.CHECKPOINTS)
            with (
                patch.object(atomic, "_flush", lambda path: None),
                patch.object(checkpoint, "checkpoint_files", lambda folder: {}),
            ):
                times["bare"].append(timed(lambda: checkpoint.save_checkpoint(stage, progress)))
            shutil.rmtree(stage.directory / checkpoint.CHECKPOINTS)
    return {name: each[1:] for name, each in times.items()}, stage.checkpoint_every


def timed(act: Callable[[], object]) -> tuple[float, float]:
    """Return the wall and processor seconds that something takes."""
    begun = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


if __name__ == "__main__":
    main()
