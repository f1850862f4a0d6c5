"""`gkd plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING, Any

import click

from gkd_core.analysis.sizes import parse_size, readable
from gkd_core.cli.json_output import json_option
from gkd_core.cli.numeric import Whole
from gkd_core.cli.options import RunOptions, run_options, show_warnings

if TYPE_CHECKING:
    from gkd_core.planning.estimate import Estimate
    from gkd_core.planning.search import Found, Limit
    from gkd_core.training.stage_spec import StageSpec


class ByteSize(click.ParamType[int]):
    """A number of bytes with a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes, or fail if the text is not a size."""
        try:
            return value if isinstance(value, int) else parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class FigureFile(click.ParamType[Path]):
    """A file that can be written, as far as that shows before a plan is made."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, or fail if it is a folder or in none."""
        path = Path(value)
        try:
            path.parent.stat()
            with suppress(FileNotFoundError):
                if S_ISDIR(path.stat().st_mode):
                    self.fail(f"{value!r} is a folder", param, ctx)
        except OSError as error:
            self.fail(f"{value!r} cannot be written: {error.strerror}", param, ctx)
        return path


@click.command()
@run_options
@click.option("--gpus", "nproc", type=Whole(), help="Number of GPUs; the same as --nproc.")
@click.option(
    "--memory", type=ByteSize(), help="Search for a layout that fits into GPUs of this size: 40GiB."
)
@click.option(
    "--host-memory",
    type=ByteSize(),
    help="With --memory: host memory that all processes may use together: 512GiB. [no limit]",
)
@json_option()
@click.option("--figure", type=FigureFile(), help="Also plot the memory by kind to a PNG file.")
def plan(
    files: tuple[Path, ...],
    recipe: str | None,
    settings: tuple[str, ...],
    memory: int | None,
    host_memory: int | None,
    as_json: bool,
    figure: Path | None,
    **flags: Any,
) -> list[dict[str, Any]] | None:
    """Show the memory, arithmetic and communication of a step.

    Takes the settings of `gkd run` and simulates a training step. No weights are read and no GPU is
    needed: for a model that is not available yet, a directory with its config.json is enough. With
    --memory, it tries layouts in this order: ZeRO, tensor parallelism, host memory.
    """
    if host_memory is not None and memory is None:
        raise click.UsageError("--host-memory limits a search: add --memory")
    from rich.console import Console

    from gkd_core.analysis.memory import memory_table
    from gkd_core.planning.search import Limit
    from gkd_core.planning.shapes import ShapeSpecBuilder
    from gkd_core.planning.simulation import simulate
    from gkd_core.plugins import registry
    from gkd_core.runs.run import build_specs

    resolved = RunOptions(files, recipe, settings, flags).resolve()
    show_warnings(resolved)
    builder = ShapeSpecBuilder(registry(), [stage.config.task for stage in resolved.stages])
    stages = list(build_specs(resolved, builder).values())
    for stage in stages:
        _say_what_is_left_out(stage)
    if memory is not None:
        return _search(stages, Limit(memory, host_memory), as_json, figure)
    estimates = [simulate(stage, registry()) for stage in stages]
    if figure is not None:
        _draw(figure, {estimate.stage: estimate for estimate in estimates})
    if as_json:
        return [estimate.to_json() for estimate in estimates]
    Console(highlight=False).print(memory_table(estimates, resolved.config.parallel.nproc))
    return None


def _say_what_is_left_out(stage: StageSpec) -> None:
    scale = stage.config.student.slice
    if scale is not None and stage.follows is None:
        click.echo(
            f"Warning: {stage.settings.path('student.scale')} = {scale:g} keeps the parts that a "
            "run finds to be important; the plan is for the unpruned student",
            err=True,
        )
    if stage.config.rollout is not None:
        click.echo(
            f"Warning: {stage.settings.path('rollout')} makes models write text; the plan covers "
            "training on it, not the key-value cache and the time of writing",
            err=True,
        )


def _search(
    stages: Sequence[StageSpec], limit: Limit, as_json: bool, figure: Path | None
) -> list[dict[str, Any]] | None:
    """Search for a layout for each stage; return the trials as JSON, or print them."""
    from functools import partial

    from gkd_core.planning.search import Search
    from gkd_core.planning.simulation import simulate
    from gkd_core.plugins import registry

    run = partial(simulate, registry=registry())
    found = [Search(stage, registry(), limit, run).run() for stage in stages]
    if figure is not None:
        bars = {
            f"{one.stage.settings.path('')}{trial.choice.label}": trial.estimate
            for one in found
            for trial in one.trials
            if trial.estimate is not None
        }
        if not bars:
            raise click.ClickException(
                "no layout was worth simulating, so there is nothing to plot"
            )
        _draw(figure, bars, limit.device)
    if as_json:
        return [one.to_json() for one in found]
    _show(found, limit)
    return None


def _show(found: Sequence[Found], limit: Limit) -> None:
    """Print the trials of each stage and a recommendation for all stages."""
    from rich.console import Console

    from gkd_core.analysis.memory import memory_table, trials_table

    console = Console(highlight=False)
    settings: list[str] = []
    for one in found:
        console.print(trials_table(one, limit))
        if one.fitting is None or one.fitting.estimate is None:
            click.echo(_too_large(one, limit))
            continue
        console.print(memory_table([one.fitting.estimate], one.stage.layout.world))
        settings += one.fitting.choice.settings(one.stage)
    if all(one.fitting for one in found):
        click.echo(f"Recommended: {_options(found[0].stage.layout.world, settings)}")


def _too_large(found: Found, limit: Limit) -> str:
    world, largest = found.stage.layout.world, found.largest
    there = readable(limit.device)
    if limit.host is not None:
        there += f" and {readable(limit.host)} of host memory"
    said = f"No layout fits into {world} x {there}."
    if largest is None:
        return f"{said} {_advice(found.stage)}"
    return (
        f"{said} The largest teacher of this width that would fit has {largest.blocks} blocks, "
        f"{largest.weights / 1e9:.1f} billion weights: "
        f"{_options(world, largest.choice.settings(found.stage))}"
    )


def _advice(stage: StageSpec) -> str:
    if not stage.reads_teachers:
        return "No teacher is used: use a smaller student or batch"
    if len(stage.teachers) > 1:
        return "Use smaller teachers, or a smaller student or batch"
    return "Not even a teacher with one block would fit: use a smaller student or batch"


def _options(world: int, settings: Sequence[str]) -> str:
    return " ".join([f"--nproc {world}", *(f"--set {text}" for text in settings)])


def _draw(path: Path, estimates: Mapping[str, Estimate], limit: int | None = None) -> None:
    from gkd_core.analysis.memory_figure import memory_figure
    from gkd_core.planning.memory_tracker import ON_DEVICE

    bars = {
        name: {str(kind): size for kind, size in estimate.memory.items()}
        for name, estimate in estimates.items()
    }
    path.write_bytes(memory_figure(bars, ON_DEVICE, limit))
