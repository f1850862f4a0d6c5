"""Console output during training: a progress bar, or plain lines without a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

LINE = 80
"""Characters after which a plain line is continued in the next."""


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
        left = self.clock.left(step.index + 1)
        self.progress.update(
            self.progress.task_ids[0],
            completed=step.index + 1,
            losses="  ".join(_losses(values, digits=3)),
            rate=_rate(values),
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
    """A short line per logged step, for output that is not a terminal.

    `log.txt` has all values of a step in one line; here the losses and the speed are shown, as by
    `ProgressBar`, and a line that gets too long is continued, indented.

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
        at = f"{step.stage} step {step.index + 1}/{step.total}"
        left = self.clock.left(step.index + 1)
        shown = [at, *_losses(values, digits=4), _rate(values)]
        if left is not None:
            stage, run = map(clock_time, left)
            shown.append(f"eta {stage}" + (f", of all {run}" if self.clock.place else ""))
        self.say(_folded(shown))

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


def _losses(values: Mapping[str, float], digits: int) -> list[str]:
    return [
        f"{name.removeprefix('loss/')} {value:.{digits}g}"
        for name, value in values.items()
        if name.startswith("loss/")
    ]


def _rate(values: Mapping[str, float]) -> str:
    return f"{values['samples_per_second']:.0f} samples/s"


def _folded(parts: Sequence[str]) -> str:
    """Join parts with two spaces in lines of `LINE` characters; a part is never broken."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 2 + len(part) <= LINE:
            lines[-1] += f"  {part}"
        else:
            lines.append(f"    {part}")
    return "\n".join(lines)


def _whole(width: int | None = None) -> Column:
    """Return a column of the bar that is never truncated."""
    return Column(no_wrap=True, min_width=width)


def _giving_way() -> Column:
    """Return a column of the bar that takes the remaining width."""
    return Column(no_wrap=True, overflow="ellipsis", ratio=1)
