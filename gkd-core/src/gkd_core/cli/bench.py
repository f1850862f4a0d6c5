"""`gkd bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gkd_core.cli.json_output import json_option
from gkd_core.cli.numeric import WholeRange


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="DIR...")
@click.option(
    "--batch", multiple=True, type=WholeRange(1, 2**16), help="Rows of a batch; repeatable. [1, 8]"
)
@click.option(
    "--length",
    multiple=True,
    type=WholeRange(1, 2**20),
    help="Tokens of a row; repeatable. [32 and 128, if all models read them]",
)
@click.option(
    "--rounds",
    type=WholeRange(1),
    default=20,
    show_default=True,
    help="Number of times that each model reads each batch size.",
)
@click.option(
    "--threads", type=WholeRange(1), default=1, show_default=True, help="Threads of each model."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for bench.json and figures.",
)
@json_option()
def bench(
    models: tuple[str, ...],
    batch: tuple[int, ...],
    length: tuple[int, ...],
    rounds: int,
    threads: int,
    output: Path | None,
    as_json: bool,
) -> dict[str, Any] | None:
    """Measure the latency and size of models side by side.

    DIR is a Hugging Face directory, such as RUN/student, or an export. The models take turns, batch
    by batch, in one process; times are compared with the first model's. Memory is measured in a
    separate process for each model, with the largest batch, and without that of the libraries. If
    models of a run are among them, the report of that run shows quality against latency.
    """
    from rich.console import Console

    from gkd_core.deploy.bench import bench as measured
    from gkd_core.deploy.bench import report_bench

    screen = Console(stderr=True, highlight=False)
    # The same directory may be named in several ways.
    names = list({Path(name).resolve(): name for name in reversed(models)}.values())[::-1]
    found = measured(
        names,
        batch or (1, 8),
        length or None,
        rounds,
        threads,
        lambda text: screen.print(text, markup=False, soft_wrap=True),
    )
    written = [] if output is None else found.write(output)
    written += report_bench(names, found)
    if as_json:
        return found.as_json()
    console = Console(highlight=False)
    for table in found.tables():
        console.print(table)
        console.print()
    for note in found.notes():
        console.print(note, markup=False, soft_wrap=True)
    for path in written:
        console.print(f"written to {path}", markup=False, soft_wrap=True)
    return None
