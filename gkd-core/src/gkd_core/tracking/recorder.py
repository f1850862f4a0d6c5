"""`Recorder`: forwards the progress of a run to those who display or store it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gkd_core.atomic import write_file
from gkd_core.contract.step import Step
from gkd_core.errors import escape_controls
from gkd_core.plugins.owners import described
from gkd_core.strict_json import json_text

if TYPE_CHECKING:
    from gkd_core.contract.run_info import RunInfo
    from gkd_core.contract.sink import Sink
    from gkd_core.plugins import Blame


class Listener(Protocol):
    """Displays or stores the progress of a run for gkd itself: the screen, the log, the report."""

    def start_run(self, costs: Mapping[str, float]) -> None:
        """Start a run; `costs` is the arithmetic of each stage that is not finished, in order."""

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Start a stage of `total` steps, or continue it after `done` of them."""

    def log_step(self, step: Step, values: Mapping[str, float]) -> None:
        """Log a step: `loss/TERM`, `lr`, `gradient_norm`, `samples_per_second`.

        In fp16 also `loss_scale` and `skipped_steps`; values that are not finite are then omitted.
        """

    def log_evaluation(self, step: Step, metrics: Mapping[str, float]) -> None:
        """Log an evaluation of the student."""

    def end_stage(self) -> None:
        """End the stage."""

    def say(self, text: str) -> None:
        """Show a message to the user."""


class Recorder:
    """Forwards everything to all listeners and sinks.

    A sink that raises an error is named, and left out from then on; the run goes on.

    Args:
        listeners: Those that the run needs.
        sinks: Those that keep a record of it.
        blame: Returns the plugin that raised an error, if it was one.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        sinks: Sequence[Sink] = (),
        blame: Callable[[BaseException], Blame | None] = lambda error: None,
    ) -> None:
        self._listeners = listeners
        self._sinks = list(sinks)
        self._blame = blame

    @contextmanager
    def record(self, run: RunInfo, settings: Mapping[str, Any]) -> Iterator[None]:
        """Tell the sinks when a run begins, and how it ends.

        Args:
            run: The run.
            settings: Its settings by dotted key.
        """
        self._track(lambda sink: sink.start(run, settings))
        error: BaseException | None = None
        try:
            yield
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._track(lambda sink: sink.finish(error))

    def start_run(self, costs: Mapping[str, float]) -> None:
        """Start a run; `costs` is the arithmetic of each stage that is not finished, in order."""
        for listener in self._listeners:
            listener.start_run(costs)

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Start a stage of `total` steps, or continue it after `done` of them."""
        for listener in self._listeners:
            listener.start_stage(name, total, done)
        self._track(lambda sink: sink.start_stage(name, total, done))

    def log_step(
        self,
        step: Step,
        losses: Mapping[str, float],
        *,
        lr: float,
        gradient_norm: float,
        samples_per_second: float,
        scaling: Mapping[str, float] | None = None,
        written: Mapping[str, float] | None = None,
    ) -> None:
        """Log a step.

        Args:
            step: The step.
            losses: Its loss terms.
            lr: Its learning rate.
            gradient_norm: Gradient norm before clipping.
            samples_per_second: Throughput since the last logged step.
            scaling: State of the loss scaler, if any; values that are not finite, as in a step that
                overflowed, are then omitted.
            written: Numbers about the text that models wrote since the last logged step, if any.
        """
        values = {f"loss/{name}": value for name, value in losses.items()}
        values |= {
            "lr": lr,
            "gradient_norm": gradient_norm,
            "samples_per_second": samples_per_second,
            **(scaling or {}),
            **(written or {}),
        }
        if scaling:
            values = {name: value for name, value in values.items() if math.isfinite(value)}
        for listener in self._listeners:
            listener.log_step(step, values)
        self.track(step, {k if "/" in k else f"train/{k}": v for k, v in values.items()})

    def log_evaluation(self, step: Step, metrics: Mapping[str, float]) -> None:
        """Log an evaluation of the student."""
        for listener in self._listeners:
            listener.log_evaluation(step, metrics)
        self.track(step, in_validation(metrics))

    def track(self, step: Step, values: Mapping[str, float]) -> None:
        """Log numbers of a step in the sinks only.

        Args:
            step: The step.
            values: The numbers by full name, such as `validation/accuracy`.
        """
        self._track(lambda sink: sink.log(step, values))

    def end_stage(self) -> None:
        """End the stage."""
        for listener in self._listeners:
            listener.end_stage()
        self._track(lambda sink: sink.end_stage())

    def say(self, text: str) -> None:
        """Show a message to the user, without control characters."""
        shown = escape_controls(text)
        for listener in self._listeners:
            listener.say(shown)
        self._track(lambda sink: sink.say(shown))

    def summarize(self, values: Mapping[str, float]) -> None:
        """Log numbers of the whole run in the sinks."""
        self._track(lambda sink: sink.summarize(values))

    def add_file(self, path: Path) -> None:
        """Give a file of the run to the sinks."""
        self._track(lambda sink: sink.add_file(path))

    def _track(self, event: Callable[[Sink], None]) -> None:
        for sink in tuple(self._sinks):
            try:
                event(sink)
            except (Exception, SystemExit) as error:
                self._sinks.remove(sink)
                reason = self._blame(error) or described(error)
                self.say(f"tracker {sink.name} stops recording this run: {reason}")


class JsonLines:
    """Stores every step and evaluation as a line of `metrics.jsonl`; not finite values are null.

    Args:
        path: The file. When a stage is resumed, its lines after the checkpoint are dropped, because
            these steps are repeated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.touch()

    def start_run(self, costs: Mapping[str, float]) -> None:
        """Do nothing."""

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Drop the lines of steps that will be repeated."""
        _rewrite(self.path, _without(self.path, name, done))

    def log_step(self, step: Step, values: Mapping[str, float]) -> None:
        """Append a line."""
        self._append(step, values)

    def log_evaluation(self, step: Step, metrics: Mapping[str, float]) -> None:
        """Append a line."""
        self._append(step, in_validation(metrics))

    def end_stage(self) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def _append(self, step: Step, values: Mapping[str, float]) -> None:
        entry = {"stage": step.stage, "step": step.index + 1, "epoch": step.epoch, **values}
        with self.path.open("a") as file:
            file.write(json_text(entry) + "\n")


class TextLog:
    """Writes messages, steps and evaluations to `log.txt`.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def start_run(self, costs: Mapping[str, float]) -> None:
        """Do nothing."""

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


def in_validation(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics of the validation rows by full name."""
    return {f"validation/{name}": value for name, value in metrics.items()}


def format_values(step: Step, values: Mapping[str, float]) -> str:
    """Format a step and its values as one line."""
    shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    return f"{step.stage} step {step.index + 1}/{step.total}  {shown}"


def copy_entries(source: Path, target: Path, stage: str) -> None:
    """Copy the lines of a stage from one `metrics.jsonl` to another, replacing those there."""
    lines = source.read_text().splitlines() if source.exists() else []
    mine = [line for line in lines if (entry := _entry(line)) and entry["stage"] == stage]
    _rewrite(target, [*_without(target, stage, done=0), *mine])


def _without(path: Path, stage: str, done: int) -> list[str]:
    """Return the lines of a file except those of a stage after its first `done` steps."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        line
        for line in lines
        if (entry := _entry(line)) and (entry["stage"] != stage or entry["step"] <= done)
    ]


def _rewrite(path: Path, lines: Sequence[str]) -> None:
    write_file(path, "".join(f"{line}\n" for line in lines))


def _entry(line: str) -> dict[str, Any] | None:
    """Parse a line; return None if it was truncated by an interruption."""
    try:
        entry: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry
