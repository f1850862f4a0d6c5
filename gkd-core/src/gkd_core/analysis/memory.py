"""The tables of simulated steps that `gkd plan` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gkd_core.analysis.sizes import readable
from gkd_core.planning.estimate import Estimate
from gkd_core.planning.memory_tracker import ON_DEVICE
from gkd_core.planning.search import Found, Limit

NONE = "-"


def memory_table(estimates: Sequence[Estimate], processes: int) -> Table:
    """Return a table with a column per stage.

    Args:
        estimates: The estimates of the stages.
        processes: Number of processes of the run.
    """
    title = f"simulated, per GPU ({processes} of them)" if processes > 1 else "simulated"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="")
    table.add_column("")
    for estimate in estimates:
        table.add_column(estimate.stage, justify="right")
    for kind in ON_DEVICE:
        table.add_row(kind, *(_size(estimate.memory.get(kind, 0)) for estimate in estimates))
    table.add_section()
    for name, values in (
        ("peak", [readable(estimate.peak) for estimate in estimates]),
        ("host memory", [_size(estimate.host) for estimate in estimates]),
        ("TFLOP a step", [_tera(estimate.flops) for estimate in estimates]),
        ("TFLOP a probe", [_tera(estimate.probe_flops) for estimate in estimates]),
        ("sent a step", [_size(sum(estimate.sent.values())) for estimate in estimates]),
        ("simulated in", [f"{estimate.seconds:.0f} s" for estimate in estimates]),
    ):
        if any(values):
            table.add_row(name, *values)
    return table


def trials_table(found: Found, limit: Limit) -> Table:
    """Return a table with a row per layout that was tried.

    Args:
        found: The result of the search.
        limit: The available memory.
    """
    stage = found.stage.settings.path("").removesuffix(".")
    title = f"layouts of {stage}" if stage else "layouts"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="")
    table.add_column("")
    table.add_column("per GPU", justify="right")
    table.add_column("host, all", justify="right")
    table.add_column("fits")
    for trial in found.trials:
        sizes = [_size(size) for size in (trial.need.device, trial.need.host)]
        if trial.estimate is None:
            sizes = [size if size == NONE else f"> {size}" for size in sizes]
        table.add_row(trial.choice.label, *sizes, "yes" if trial.fits else "no")
    there = "no limit" if limit.host is None else readable(limit.host)
    table.caption = f"There is: {readable(limit.device)} per GPU, host memory {there}."
    table.caption_justify = "left"
    table.caption_style = ""
    return table


def _tera(flops: int) -> str:
    return f"{flops / 1e12:,.2f}" if flops else ""


def _size(size: int) -> str:
    return readable(size) if size else NONE
