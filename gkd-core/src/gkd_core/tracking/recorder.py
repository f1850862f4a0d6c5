"""`Recorder`: what happens during a run, told to everything that shows or keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gkd_core.atomic import write_file
from gkd_core.contract.step import Step

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Sink(Protocol):
    """Shows or keeps what happens."""

    def start_stage(self, name: str, total: int, done: int) -> None:
        """A stage of `total` steps begins, or goes on after `done` of them."""

    def log_step(self, step: Step, values: Mapping[str, float]) -> None:
        """A step was done: `loss/TERM`, `lr`, `gradient_norm`, `samples_per_second`.

        In fp16 also `loss_scale` and `skipped_steps`; what is not finite is then left out.
        """

    def log_evaluation(self, step: Step, metrics: Mapping[str, float]) -> None:
        """The student was evaluated."""

    def end_stage(self) -> None:
        """The stage is over."""

    def say(self, text: str) -> None:
        """Tell a person something."""


class Recorder:
    """Tells every sink.

    Args:
        sinks: What shows or keeps.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = sinks

    def start_stage(self, name: str, total: int, done: int) -> None:
        """A stage of `total` steps begins, or goes on after `done` of them."""
        for sink in self.sinks:
            sink.start_stage(name, total, done)

    def log_step(
        self,
        step: Step,
        losses: Mapping[str, float],
        *,
        lr: float,
        gradient_norm: float,
        samples_per_second: float,
        scaling: Mapping[str, float] | None = None,
    ) -> None:
        """A step was done.

        Args:
            step: The step.
            losses: Its losses.
            lr: Its learning rate.
            gradient_norm: Before clipping.
            samples_per_second: Speed since the last one that was logged.
            scaling: State of the loss scale, if there is one; numbers of a step that overflowed
                are then left out where they are not finite.
        """
        values = {f"loss/{name}": value for name, value in losses.items()}
        values |= {
            "lr": lr,
            "gradient_norm": gradient_norm,
            "samples_per_second": samples_per_second,
            **(scaling or {}),
        }
        if scaling:
            values = {name: value for name, value in values.items() if math.isfinite(value)}
        for sink in self.sinks:
            sink.log_step(step, values)

    def log_evaluation(self, step: Step, metrics: Mapping[str, float]) -> None:
        """The student was evaluated."""
        for sink in self.sinks:
            sink.log_evaluation(step, metrics)

    def end_stage(self) -> None:
        """The stage is over."""
        for sink in self.sinks:
            sink.end_stage()

    def say(self, text: str) -> None:
        """Tell a person something."""
        for sink in self.sinks:
            sink.say(text)


METRICS = "metrics.jsonl"
"""File of a run with a line for every step and evaluation."""


class JsonLines:
    """Keeps every step and evaluation as a line of `metrics.jsonl`.

    Args:
        path: The file. When a stage goes on after an interruption, its lines beyond the checkpoint
            are dropped, since these steps are done again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.touch()

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Drop the lines of steps that will be done again."""
        _rewrite(self.path, _without(self.path, name, done))

    def log_step(self, step: Step, values: Mapping[str, float]) -> None:
        """Append a line."""
        self._append(step, values)

    def log_evaluation(self, step: Step, metrics: Mapping[str, float]) -> None:
        """Append a line."""
        self._append(step, {f"validation/{name}": value for name, value in metrics.items()})

    def end_stage(self) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def _append(self, step: Step, values: Mapping[str, float]) -> None:
        entry = {"stage": step.stage, "step": step.index + 1, "epoch": step.epoch, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


class TensorBoard:
    """Writes the curves of each stage to a TensorBoard folder of its own.

    Args:
        directory: Folder of the run.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.writer: SummaryWriter | None = None

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Open the stage's folder; steps that will be done again are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.directory / name), purge_step=done + 1)

    def log_step(self, step: Step, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        self._add(step, {k if "/" in k else f"train/{k}": v for k, v in values.items()})

    def log_evaluation(self, step: Step, metrics: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        self._add(step, {f"validation/{name}": value for name, value in metrics.items()})

    def end_stage(self) -> None:
        """Close the folder."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def say(self, text: str) -> None:
        """Do nothing."""

    def _add(self, step: Step, values: Mapping[str, float]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step.index + 1)


class TextLog:
    """Keeps what was said in `log.txt`.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Write a line."""
        self.say(f"stage {name}: steps {done + 1} to {total}")

    def log_step(self, step: Step, values: Mapping[str, float]) -> None:
        """Write a line."""
        self.say(format_values(step, values))

    def log_evaluation(self, step: Step, metrics: Mapping[str, float]) -> None:
        """Write a line."""
        self.say(f"{format_values(step, metrics)} (validation)")

    def end_stage(self) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Write lines."""
        with self.path.open("a") as file:
            file.write(f"{text}\n")


def format_values(step: Step, values: Mapping[str, float]) -> str:
    """Return a step and its values as one line."""
    shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    return f"{step.stage} step {step.index + 1}/{step.total}  {shown}"


def copy_entries(source: Path, target: Path, stage: str) -> None:
    """Copy the lines of a stage from one `metrics.jsonl` to another, in place of those there."""
    lines = source.read_text().splitlines() if source.exists() else []
    mine = [line for line in lines if (entry := _entry(line)) and entry["stage"] == stage]
    _rewrite(target, [*_without(target, stage, done=0), *mine])


def _without(path: Path, stage: str, done: int) -> list[str]:
    """Return the lines of a file but those of a stage beyond its first steps."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        line
        for line in lines
        if (entry := _entry(line)) and (entry["stage"] != stage or entry["step"] <= done)
    ]


def _rewrite(path: Path, lines: Sequence[str]) -> None:
    write_file(path, "".join(f"{line}\n" for line in lines))


def _entry(line: str) -> dict[str, Any] | None:
    """Read a line, or return None for one that was cut off by an interruption."""
    try:
        entry: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry
