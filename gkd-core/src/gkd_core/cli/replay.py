"""`gkd replay`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gkd_core.cli.numeric import WholeRange

if TYPE_CHECKING:
    from torch import Tensor

    from gkd_core.runs.replay import Replay


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--rank",
    type=WholeRange(min=0),
    default=0,
    help="Share of the rows to repeat, if several processes divided them. [0]",
)
def replay(directory: Path, rank: int) -> None:
    """Repeat the step at which a run ended, and show why it ended.

    The run in DIRECTORY ended because a loss or a gradient was not finite, and saved the step. The
    step is repeated in one process, which holds all models. The command compares the losses with
    those of the run, and names the first module or term that is not finite. Nothing is trained.
    """
    from gkd_core.plugins import registry
    from gkd_core.runs.replay import replay as repeat

    done = repeat(directory, registry(), rank)
    facts = list(_facts(done))
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        click.echo(f"{name:<{width}}  {value}".rstrip())


def _facts(done: Replay) -> Iterator[tuple[str, str]]:
    """Yield (name, value) lines about a step that was repeated."""
    saved = done.saved
    rows = sum(len(batch) for batch in saved.batches)
    yield "step", f"{saved.index + 1} of {saved.total} of stage {saved.stage}, {rows} rows"
    for name, loss in done.losses.items():
        yield f"loss {name}", _shown(loss)
    yield "gradient norm", _shown(done.gradient_norm)
    differing = done.differences
    yield "repeated", f"not the same: {', '.join(differing)}" if differing else "bit for bit"
    if differing:
        yield "then", f"PyTorch {saved.torch} on {saved.device}, {saved.processes} processes"
    for name in saved.inexact:
        yield "state", f"{name} had changed it in place when the step was saved"
    yield "first", "all is finite" if done.found is None else str(done.found)


def _shown(value: Tensor) -> str:
    return f"{float(value):.6g}"
