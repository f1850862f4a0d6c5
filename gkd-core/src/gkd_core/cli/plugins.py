"""`gkd plugins`."""

from __future__ import annotations

import click


@click.command()
def plugins() -> None:
    """List the installed plugins and what they provide."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gkd_core.plugins import registry

    found = registry()
    provided: dict[str, list[str]] = {}
    for method in found.methods:
        provided.setdefault(found.provider(method).name, []).append(method)
    console = Console(highlight=False)
    for name, plugin in sorted(found.plugins.items()):
        console.print(Text.assemble((name, "bold"), f"  {plugin.distribution} {plugin.version}"))
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("  hooks", ", ".join(found.hooks_of(plugin)) or "none")
        table.add_row("  methods", ", ".join(provided.get(name, [])) or "none")
        console.print(table)
    for skipped in found.skipped:
        console.print(Text(f"skipped: {skipped}"), soft_wrap=True)
