"""`gkd optimizers`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from gkd_core.contract.optimizer import OptimizerFactory


@click.command()
@click.argument("name", required=False)
def optimizers(name: str | None) -> None:
    """List the optimizers, or show one with its options."""
    from rich.console import Console

    from gkd_core.plugins import registry

    console = Console(highlight=False)
    if name is None:
        console.print(_entries(registry().optimizers.values()))
        console.print(
            "\nChoose one: gkd run --set optim.name=muon\nOptions:    gkd optimizers NAME"
        )
    else:
        _show(console, registry().optimizer(name))


def _entries(optimizers: Iterable[type[OptimizerFactory]]) -> RenderableType:
    """Return an entry per optimizer: its update, and where it was published."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for optimizer in optimizers:
        summary = (inspect.getdoc(optimizer) or "").partition("\n")[0]
        table.add_row(
            f"  {optimizer.name}", Text.assemble(f"{summary}\n", (optimizer.paper, "dim"))
        )
    return table


def _show(console: Console, optimizer: type[OptimizerFactory]) -> None:
    from gkd_core.cli.methods import print_docstring, print_options
    from gkd_core.plugins import registry

    provider = registry().optimizer_provider(optimizer.name)
    console.print(f"[bold]{optimizer.name}[/]  ({provider.distribution} {provider.version})")
    console.print(optimizer.paper, markup=False)
    print_docstring(console, optimizer)
    zero = "0 to 3" if optimizer.elementwise else "0 to 2, without offloading"
    console.print(f"ZeRO  {zero}")
    print_options(console, f"optim.{optimizer.name}", optimizer.Config)
