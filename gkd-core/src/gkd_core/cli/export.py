"""`gkd export`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gkd_core.cli.json_output import json_option
from gkd_core.cli.numeric import WholeRange

if TYPE_CHECKING:
    from rich.console import Console

    from gkd_core.deploy.verification import Verification


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--to", required=True, type=click.Path(path_type=Path), help="Directory for the result."
)
@click.option(
    "--format",
    type=click.Choice(["hf", "onnx"]),
    default="hf",
    show_default=True,
    help="A Hugging Face directory, or an ONNX graph.",
)
@click.option(
    "--quantize",
    type=click.Choice(["int8"]),
    help="With --format onnx: store the weights in 8 bits.",
)
@click.option("--accept", is_flag=True, help="Keep the result even if the verification rejects it.")
@click.option(
    "--rows",
    type=WholeRange(1),
    default=1000,
    show_default=True,
    help="Maximum number of rows to verify on.",
)
@click.option("--opset", type=WholeRange(18), help="Version of the ONNX operators. [newest]")
@click.option("--license", help="License of the model, for its card.")
@click.option(
    "--push",
    metavar="OWNER/NAME",
    help="Upload it to this repository of the Hugging Face hub.",
)
@json_option(help="Print the result of the verification as JSON.")
def export(
    run: Path,
    to: Path,
    format: str,
    quantize: str | None,
    push: str | None,
    as_json: bool,
    **options: Any,
) -> dict[str, Any] | None:
    """Export the student of a finished run.

    The result is compared with the student on the test rows of the run (or on its validation rows,
    if it has no test rows), and is kept only if both agree. It replaces an earlier export in the
    same place. It has a model card (README.md), and lineage.json records its origin. Nothing is
    uploaded without --push, which uses the token of `hf auth login`. A new repository is private.
    """
    from dataclasses import asdict

    from rich.console import Console

    from gkd_core.analysis.finished_run import FinishedRun
    from gkd_core.deploy.export import ExportOptions, export_student
    from gkd_core.deploy.push import check_push, push_export
    from gkd_core.plugins import registry

    if quantize is not None and format != "onnx":
        raise click.UsageError("--quantize needs --format onnx")
    if options["opset"] is not None and format != "onnx":
        raise click.UsageError("--opset needs --format onnx")
    if push is not None:
        check_push(push)
    console = Console(stderr=True, highlight=False)
    chosen = ExportOptions(format, quantize is not None, **options)  # type: ignore[arg-type]
    found = export_student(
        FinishedRun.read(run, registry()),
        registry(),
        to,
        chosen,
        lambda text: _shown(console, text),
    )
    pushed = None
    if push is not None:
        with _shown(console, f"uploading to {push}"):
            pushed = push_export(to, push)
    if as_json:
        return asdict(found) | {"pushed": pushed}
    _report(Console(highlight=False), found, to)
    if pushed is not None:
        click.echo(f"pushed to   {pushed}")
    return None


@contextmanager
def _shown(console: Console, text: str) -> Iterator[None]:
    """Show a step and the time that it has taken so far; a line when it is done."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    start = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    moving = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not moving) as progress:
        progress.add_task(text)
        yield
    console.print(f"{text}  {time.monotonic() - start:.0f} s", markup=False, soft_wrap=True)


def _report(console: Console, found: Verification, to: Path) -> None:
    """Print what the verification found."""
    same = ""
    if found.differing is not None:
        what = "the same predictions" if not found.differing else f"{found.differing} differ"
        same = f", {what}"
    lines = [
        f"rows        {found.rows:,} {found.split}{same}",
        f"difference  {found.difference:.2g} at most, of outputs up to {found.largest:.3g}",
        f"{found.metric:<11} {found.after:.4f}, of the student {found.before:.4f}{_change(found)}",
        *(f"accepted    {problem}" for problem in found.problems),
        *([f"weak        {found.weak}"] if found.weak else []),
        f"export      {to}",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _change(found: Verification) -> str:
    interval = None if found.change is None else found.change.interval
    if interval is None:
        return ""
    return f"; {interval.level:.0%} interval of the difference {interval:+.4f}"
