"""The speed and the size of models side by side, and how good they are."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gkd_core.analysis.figures import axes_of, png, svg
from gkd_core.analysis.page import PageCell, PageLine, PageTable, section
from gkd_core.analysis.report import add_bench
from gkd_core.analysis.sizes import readable
from gkd_core.analysis.subjects import find_named
from gkd_core.atomic import write_file
from gkd_core.deploy.candidate import MEBI, Candidate, peak_memory
from gkd_core.deploy.quality import Quality, qualities
from gkd_core.deploy.timing import (
    BatchShape,
    ModelTiming,
    check_lengths,
    default_lengths,
    time_in_turn,
)
from gkd_core.evaluation.statistics import LEVEL
from gkd_core.runs.public_names import public_name
from gkd_core.strict_json import json_text

NONE = "-"


@dataclass(frozen=True)
class Bench:
    """The measurements of some models.

    Attributes:
        measured: Each model at each size of batch.
        sizes: Bytes of the weights of each model.
        memory: MiB that each model takes at most with the largest batch; None if not measured.
        qualities: How good each is, as its run or its export has it; None if not known.
        machine: Processor, number of threads and versions.
    """

    measured: Sequence[ModelTiming]
    sizes: Mapping[str, int]
    memory: Mapping[str, float | None]
    qualities: Mapping[str, Quality | None]
    machine: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the measurements as JSON can hold them."""
        return asdict(self)

    def tables(self) -> Iterator[Table]:
        """Yield a table of the models, and one for each size of batch."""
        table = _table("", "weights", "memory", self._quality_heading, "rows")
        for name, size in self.sizes.items():
            memory, quality = self.memory[name], self.qualities[name]
            table.add_row(
                name,
                readable(size),
                NONE if memory is None else readable(round(memory * MEBI)),
                NONE if quality is None else str(quality),
                NONE if quality is None else f"{quality.rows:,} {quality.split}",
            )
        yield table
        for shape in dict.fromkeys(BatchShape(one.rows, one.length) for one in self.measured):
            title = f"{shape.rows} x {shape.length} tokens"
            table = _table(title, "p50 ms", "p95 ms", "rows/s", "time")
            for one in self.measured:
                if BatchShape(one.rows, one.length) == shape:
                    numbers = (one.p50, one.p95, one.throughput)
                    table.add_row(
                        one.name, *(f"{number:.2f}" for number in numbers), f"{one.ratio:.2f}x"
                    )
            yield table

    def notes(self) -> Iterator[str]:
        """Yield what the columns of the tables mean, in lines."""
        first = self.measured[0].name
        yield (
            "p50: median time of a batch; p95: the time that 95% of the batches stay below; time: "
            f"relative to {first} in the same round"
        )
        yield from self._quality_notes()

    def _quality_notes(self) -> Iterator[str]:
        """Yield where the qualities are from, and whether they may be compared."""
        known = self._known
        if known:
            intervals = any(each.interval is not None for each in known.values())
            within = f", with {LEVEL:.0%} intervals" if intervals else ""
            yield (
                f"{self._quality_heading}: as the run, or the verification of the export, has "
                f"measured it on its rows{within}"
            )
        if len({each.judged_by for each in known.values()}) > 1:
            yield (
                "the models were judged on different rows, so their quality cannot be compared; "
                "export with --rows of all rows of the run to compare it"
            )

    @property
    def _known(self) -> Mapping[str, Quality]:
        """The qualities that are known."""
        return {name: each for name, each in self.qualities.items() if each is not None}

    @property
    def _quality_heading(self) -> str:
        """The metric of all qualities, or of each."""
        return " / ".join(dict.fromkeys(each.metric for each in self._known.values())) or "quality"

    def write(self, folder: Path) -> list[Path]:
        """Write `bench.json`, `latency.png` and `pareto.png`, if models have a quality on the
        same rows.

        Returns:
            The paths.
        """
        made: dict[str, str | bytes] = {
            "bench.json": json_text(self.as_json(), indent=1),
            "latency.png": self._latency(),
        }
        if self._is_comparable():
            made["pareto.png"] = png(self._pareto())
        for name, content in made.items():
            write_file(folder / name, content)
        return [folder / name for name in made]

    def _latency(self) -> bytes:
        """Draw the latency of each model over the sizes of batch."""
        figure, axes = axes_of("tokens of a batch", "median ms")
        for name in self.sizes:
            own = sorted(
                (one.rows * one.length, one.p50) for one in self.measured if one.name == name
            )
            axes.plot(*zip(*own, strict=True), marker="o", label=name)
        axes.legend()
        return png(figure)

    def section(self) -> str:
        """Return the section of a report about the models: quality against latency."""
        headings = ["model", "weights", self._quality_heading, "rows"]
        shapes = dict.fromkeys(BatchShape(one.rows, one.length) for one in self.measured)
        headings += [f"ms, {shape.rows} x {shape.length}" for shape in shapes]
        lines = [PageLine(list(self._cells(name))) for name in self.sizes]
        figure = svg(self._pareto()) if self._is_comparable() else None
        return section(
            "bench.html.jinja",
            models=PageTable(headings, lines),
            notes=list(self._quality_notes()),
            figure_svg=figure,
        )

    def _cells(self, name: str) -> Iterator[PageCell]:
        """Yield the cells of a model in a report."""
        size, quality = self.sizes[name], self.qualities[name]
        yield PageCell(name)
        yield PageCell(readable(size), size)
        if quality is None:
            yield from (PageCell(NONE), PageCell(NONE))
        else:
            yield PageCell(str(quality), quality.value)
            yield PageCell(f"{quality.rows:,} {quality.split}", quality.rows)
        for one in self.measured:
            if one.name == name:
                yield PageCell(f"{one.p50:.2f} ({one.ratio:.2f}x)", one.p50)

    def _is_comparable(self) -> bool:
        """Return whether several models have a quality, and all of the same metric and rows."""
        known = self._known
        return len(known) > 1 and len({each.judged_by for each in known.values()}) == 1

    def _pareto(self) -> Figure:
        """Draw quality over latency, at the first size of batch."""
        first, known = self.measured[0], self._known
        figure, axes = axes_of(
            f"median ms, batch {first.rows}x{first.length}", self._quality_heading
        )
        for one in self.measured:
            if one.name in known and (one.rows, one.length) == (first.rows, first.length):
                quality = known[one.name]
                axes.errorbar(
                    [one.p50], [quality.value], yerr=_bars(quality), fmt="o", label=one.name
                )
        axes.legend(frameon=False)
        return figure


def _bars(quality: Quality) -> list[list[float]] | None:
    """Return how far the interval of a quality reaches below and above it, as Matplotlib asks."""
    inside, value = quality.interval, quality.value
    if inside is None:
        return None
    return [[max(value - inside.low, 0.0)], [max(inside.high - value, 0.0)]]


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title or None, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    table.add_column("model", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def bench(
    names: Sequence[str],
    batches: Sequence[int],
    lengths: Sequence[int] | None,
    rounds: int,
    threads: int,
    say: Callable[[str], None],
) -> Bench:
    """Measure models in turn in this process, so that changes of the machine affect all alike.

    Args:
        names: Directories of the models; the first is what others are compared with.
        batches: Numbers of rows of a batch.
        lengths: Tokens of a row. Default: those of `LENGTHS` that every model reads.
        rounds: How often each model reads each batch.
        threads: Number of threads.
        say: Shows what is being done.

    Raises:
        ConfigError: A directory holds no model, or a model does not read as many tokens.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        say("loading")
        candidates = [Candidate.load(name, threads) for name in names]
        if lengths is None:
            lengths = default_lengths(candidates, say)
        check_lengths(candidates, lengths)
        shapes = [BatchShape(rows, length) for rows in batches for length in lengths]
        measured = []
        for shape in shapes:
            say(f"batches of {shape.rows} rows of {shape.length} tokens")
            measured += time_in_turn(candidates, shape, rounds)
    finally:
        torch.set_num_threads(before)
    labels = short_names(names)
    largest = max(shapes, key=lambda shape: shape.rows * shape.length)
    say("memory")
    return Bench(
        [replace(one, name=labels[one.name]) for one in measured],
        {labels[each.name]: each.size for each in candidates},
        {labels[name]: peak_memory(name, threads, largest.rows, largest.length) for name in names},
        {labels[name]: quality for name, quality in qualities(names).items()},
        _machine(threads, rounds),
    )


def _machine(threads: int, rounds: int) -> dict[str, Any]:
    """Return what the times depend on besides the models."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": threads,
        "rounds": rounds,
        "torch": torch.__version__,
    }


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the public name of each directory, or as many parts as make all different.

    Args:
        names: Directories, all different.
    """
    parts = {name: Path(name).parts for name in names}
    least = {name: len(Path(public_name(name)).parts) for name in names}
    short = {name: public_name(name) for name in names}
    for count in range(1, max(map(len, parts.values())) + 1):
        if len({*short.values()}) == len(short):
            return short
        short = {name: "/".join(own[-max(count, least[name]) :]) for name, own in parts.items()}
    return short


def report_bench(names: Sequence[str], found: Bench) -> list[Path]:
    """Add measurements to the reports of the runs whose models they are of.

    Args:
        names: Directories of the models.
        found: The measurements.

    Returns:
        The reports.
    """
    runs = dict.fromkeys(one.run for one in map(find_named, names) if one.run is not None)
    return [path for run in runs for path in add_bench(run, found.section())]
