"""Console output during training: a progress bar, or plain lines without a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from gkd_core.contract.step import Step
from gkd_core.tracking.recorder import Listener, format_values
from gkd_core.tracking.run_clock import RunClock, clock_time

BAR_WIDTH = 12


class ProgressBar:
    """A rich progress bar per stage with losses, speed and remaining time.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None
        self.clock = RunClock()

    def start_run(self, costs: Mapping[str, float]) -> None:
        """Keep what the stages cost."""
        self.clock.start_run(costs)

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Show the bar."""
        self.clock.start_stage(name, total, done)
        of_run = [TextColumn("{task.fields[run]}", table_column=_whole())] * bool(self.clock.place)
        self.progress = Progress(
            TextColumn("[bold]{task.description}", table_column=_whole()),
            BarColumn(bar_width=BAR_WIDTH, table_column=_whole(BAR_WIDTH)),
            MofNCompleteColumn(table_column=_whole()),
            TextColumn("{task.fields[rate]}", table_column=_whole()),
            TextColumn("eta"),
            TimeRemainingColumn(table_column=_whole()),
            *of_run,
            # On a narrow terminal only the losses are truncated.
            TextColumn("[dim]{task.fields[losses]}", table_column=_giving_way()),
            console=self.console,
            expand=True,
        )
        shown = f"{name} {self.clock.place}".rstrip()
        self.progress.add_task(shown, total=total, completed=done, losses="", rate="", run="")
        self.progress.start()

    def log_step(self, step: Step, values: Mapping[str, float]) -> None:
        """Advance the bar."""
        if self.progress is None:
            return
        losses = "  ".join(
            f"{name.removeprefix('loss/')} {value:.3g}"
            for name, value in values.items()
            if name.startswith("loss/")
        )
        rate = f"{values['samples_per_second']:.0f} samples/s"
        left = self.clock.left(step.index + 1)
        self.progress.update(
            self.progress.task_ids[0],
            completed=step.index + 1,
            losses=losses,
            rate=rate,
            run="" if left is None else f"of all {clock_time(left[1])}",
        )

    def log_evaluation(self, step: Step, metrics: Mapping[str, float]) -> None:
        """Print the metrics above the bar."""
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.say(f"{step.stage:>9} step {step.index + 1}: {shown}")

    def end_stage(self) -> None:
        """Stop the bar and leave it on screen."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, markup=False)


class PlainLines:
    """One line per logged step, for output that is not a terminal.

    Args:
        console: The output.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.clock = RunClock()

    def start_run(self, costs: Mapping[str, float]) -> None:
        """Keep what the stages cost."""
        self.clock.start_run(costs)

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Print a line."""
        self.clock.start_stage(name, total, done)
        self.say(f"stage {name}: steps {done + 1} to {total}")

    def log_step(self, step: Step, values: Mapping[str, float]) -> None:
        """Print a line."""
        left = self.clock.left(step.index + 1)
        shown = format_values(step, values)
        if left is not None:
            stage, run = map(clock_time, left)
            shown += f"  eta {stage}" + (f", of all {run}" if self.clock.place else "")
        self.say(shown)

    def log_evaluation(self, step: Step, metrics: Mapping[str, float]) -> None:
        """Print a line."""
        self.say(f"{format_values(step, metrics)} (validation)")

    def end_stage(self) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def display(console: Console) -> Listener:
    """Return the listener that suits the output: a terminal, a notebook, or a file."""
    live = console.is_terminal or console.is_jupyter
    return ProgressBar(console) if live else PlainLines(console)


def _whole(width: int | None = None) -> Column:
    """Return a column of the bar that is never truncated."""
    return Column(no_wrap=True, min_width=width)


def _giving_way() -> Column:
    """Return a column of the bar that takes the remaining width."""
    return Column(no_wrap=True, overflow="ellipsis", ratio=1)
