"""`gkd optimizers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gkd_core.cli.entries import entries, summary

if TYPE_CHECKING:
    from rich.console import Console

    from gkd_core.contract.optimizer import OptimizerFactory


@click.command()
@click.argument("name", required=False)
def optimizers(name: str | None) -> None:
    """List the optimizers, or show one with its options."""
    from rich.console import Console

    from gkd_core.plugins import registry

    console = Console(highlight=False)
    if name is None:
        found = registry().optimizers.values()
        console.print(entries(found, lambda one: (summary(one), one.paper)))
        console.print(
            "\nChoose one: gkd run --set optim.name=muon\nOptions:    gkd optimizers NAME"
        )
    else:
        _show(console, registry().optimizer(name))


def _show(console: Console, optimizer: type[OptimizerFactory]) -> None:
    from gkd_core.cli.methods import print_docstring, print_options
    from gkd_core.plugins import registry

    console.print(f"[bold]{optimizer.name}[/]  ({registry().owner(optimizer).release})")
    console.print(optimizer.paper, markup=False)
    print_docstring(console, optimizer)
    zero = "0 to 3" if optimizer.elementwise else "0 to 2, without offloading"
    console.print(f"ZeRO  {zero}")
    print_options(console, f"optim.{optimizer.name}", optimizer.Config)
