"""The speed and the size of models side by side, and how good they are."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gkd_core.analysis.figures import axes_of, png, svg
from gkd_core.analysis.finished_run import rows_digest
from gkd_core.analysis.page import PageCell, PageLine, PageTable, section
from gkd_core.analysis.report import add_bench
from gkd_core.analysis.sizes import readable
from gkd_core.analysis.subjects import find_named
from gkd_core.atomic import write_file
from gkd_core.deploy.candidate import MEBI, Candidate, peak_memory
from gkd_core.deploy.lineage import LINEAGE
from gkd_core.errors import ConfigError, first_line
from gkd_core.evaluation.predictions import STUDENT
from gkd_core.evaluation.statistics import LEVEL, Interval
from gkd_core.runs.public_names import public_name
from gkd_core.runs.run_files import RESULTS
from gkd_core.strict_json import json_text

Found = TypeVar("Found")

WARMUP = 2
NONE = "-"

LENGTHS = (32, 128)
"""Tokens of a row unless the user names others; models that read fewer are spared the longer."""


@dataclass(frozen=True)
class BatchShape:
    """A size of batch.

    Attributes:
        rows: Number of rows.
        length: Tokens of each.
    """

    rows: int
    length: int


@dataclass(frozen=True)
class ModelTiming:
    """A model at a size of batch.

    Attributes:
        name: The model.
        rows: Number of rows of a batch.
        length: Tokens of each.
        p50: Median milliseconds of a batch.
        p95: Milliseconds that 95% of the batches stay below.
        throughput: Rows per second, at the median.
        ratio: Median of the time over that of the first model in the same round.
    """

    name: str
    rows: int
    length: int
    p50: float
    p95: float
    throughput: float
    ratio: float


@dataclass(frozen=True)
class Quality:
    """The quality of a model, as its run or the verification of its export has measured it.

    Attributes:
        metric: Name of the metric.
        value: Its value.
        interval: Its bootstrap interval; None if it is not known.
        rows: Number of rows that it was measured on.
        split: Where they are from: `validation` or `test`.
        rows_digest: A digest of their content; None if it is not known.
    """

    metric: str
    value: float
    interval: Interval | None
    rows: int
    split: str
    rows_digest: str | None

    @property
    def judged_by(self) -> tuple[str, int, str, str | None]:
        """The metric and the rows, which qualities that may be compared have in common."""
        return self.metric, self.rows, self.split, self.rows_digest

    def __str__(self) -> str:
        """Return the value with its interval."""
        within = "" if self.interval is None else f" ({self.interval:.4f})"
        return f"{self.value:.4f}{within}"


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
            lengths = _default_lengths(candidates, say)
        _check_lengths(candidates, lengths)
        shapes = [BatchShape(rows, length) for rows in batches for length in lengths]
        measured = []
        for shape in shapes:
            say(f"batches of {shape.rows} rows of {shape.length} tokens")
            measured += _in_turn(candidates, shape, rounds)
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
        {
            "processor": platform.processor() or platform.machine(),
            "threads": threads,
            "rounds": rounds,
            "torch": torch.__version__,
        },
    )


def _default_lengths(candidates: Sequence[Candidate], say: Callable[[str], None]) -> list[int]:
    """Return the usual lengths that every model reads, or the longest; say what is left out."""
    shortest = min(candidates, key=lambda each: each.longest)
    fitting = [length for length in LENGTHS if length <= shortest.longest]
    for length in LENGTHS[len(fitting) :]:
        say(
            f"rows of {length} tokens are left out: {shortest.name} reads at most "
            f"{shortest.longest}"
        )
    return fitting or [shortest.longest]


def _check_lengths(candidates: Sequence[Candidate], lengths: Sequence[int]) -> None:
    """Reject rows that are longer than a model reads, before anything is measured."""
    longest = max(lengths)
    shortest = min(candidates, key=lambda each: each.longest)
    if longest > shortest.longest:
        raise ConfigError(
            f"{shortest.name} reads at most {shortest.longest} tokens, so rows of {longest} "
            f"cannot be measured; choose lengths up to {shortest.longest} with --length"
        )


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


def _in_turn(candidates: Sequence[Candidate], shape: BatchShape, rounds: int) -> list[ModelTiming]:
    batches = [each.inputs(shape.rows, shape.length) for each in candidates]
    times = np.zeros((len(candidates), rounds))
    for number in range(-WARMUP, rounds):
        for place, (candidate, batch) in enumerate(zip(candidates, batches, strict=True)):
            start = time.perf_counter()
            try:
                candidate.run(batch)
            except Exception as error:  # onnxruntime and torch raise many types
                raise ConfigError(
                    f"{candidate.name} cannot read {shape.rows} rows of {shape.length} tokens "
                    f"({first_line(error)}); choose others with --batch and --length"
                ) from error
            if number >= 0:
                times[place, number] = 1000 * (time.perf_counter() - start)
    return [
        ModelTiming(
            candidate.name,
            shape.rows,
            shape.length,
            p50=statistics.median(own),
            p95=float(np.percentile(own, 95)),
            throughput=1000 * shape.rows / statistics.median(own),
            ratio=float(np.median(own / times[0])),
        )
        for candidate, own in zip(candidates, times, strict=True)
    ]


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


def qualities(names: Sequence[str]) -> dict[str, Quality | None]:
    """Return the quality of models, as their run, or the verification of their export, has it.

    Args:
        names: Directories of the models.
    """
    known: dict[Path, Quality] = {}
    for run in {found.run for found in map(find_named, names) if found.run is not None}:
        if (run / RESULTS).is_file():
            known |= _read(run / RESULTS, partial(_of_run, run))
    found = {name: known.get(Path(name).resolve()) for name in names}
    for name in names:
        if (Path(name) / LINEAGE).is_file():
            found[name] = _read(Path(name) / LINEAGE, _of_export)
    return found


def _read(file: Path, quality: Callable[[Mapping[str, Any]], Found]) -> Found:
    """Return the quality that a file tells.

    Raises:
        ConfigError: The file is damaged.
    """
    try:
        return quality(json.loads(file.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file} is damaged ({type(error).__name__}: {error}). Move it away to measure without "
            "the quality that it tells, or make it again"
        ) from error


def _of_run(run: Path, results: Mapping[str, Any]) -> dict[Path, Quality]:
    """Return the quality of the models of a run, by their places."""
    return dict(_qualities(run, results))


def _qualities(run: Path, results: Mapping[str, Any]) -> Iterator[tuple[Path, Quality]]:
    metric, judged = results["metric"], (results["samples"], results["split"], rows_digest(run))
    for row in results["rows"]:
        value = row["metrics"].get(metric)
        if value is not None:
            quality = Quality(metric, value, _interval(row), *judged)
            yield Path(row["model"]).resolve(), quality
            if row is results["rows"][-1]:
                # The paths in the results begin where the run was started.
                yield (run / STUDENT).resolve(), quality


def _of_export(known: Mapping[str, Any]) -> Quality:
    """Return the quality of an export from its lineage."""
    found = known["verification"]
    return Quality(
        found["metric"],
        found["after"],
        _interval(found["estimate"]),
        found["rows"],
        found["split"],
        found.get("rows_digest"),  # version 0.2 wrote none
    )


def _interval(estimate: Mapping[str, Any] | None) -> Interval | None:
    """Return the interval of what was measured, if it is known."""
    found = None if estimate is None else estimate.get("interval")
    return None if found is None else Interval(**found)
