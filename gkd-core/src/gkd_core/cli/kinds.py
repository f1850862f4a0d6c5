"""`gkd kinds`."""

from __future__ import annotations

import inspect

import click


@click.command()
@click.argument("name", required=False)
def kinds(name: str | None) -> None:
    """List the kinds of task, or describe one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gkd_core.plugins import registry

    found, console = registry(), Console(highlight=False)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    chosen = found.kinds.values() if name is None else [found.kind(name)]
    for kind in chosen:
        text = inspect.getdoc(type(kind)) or ""
        plugin = found.kind_provider(kind.name)
        facts = f"{kind.head}; {', '.join(kind.metrics)}; {plugin.distribution} {plugin.version}"
        shown = text.partition("\n")[0] if name is None else text
        table.add_row(f"  {kind}", Text.assemble(f"{shown}\n", (facts, "dim")))
    console.print(table)
