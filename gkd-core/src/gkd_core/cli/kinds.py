"""`gkd kinds`."""

from __future__ import annotations

import inspect

import click

from gkd_core.cli.entries import entries, summary


@click.command()
@click.argument("name", required=False)
def kinds(name: str | None) -> None:
    """List the kinds of task, or describe one."""
    from rich.console import Console

    from gkd_core.plugins import registry

    found, rows = registry(), []
    for kind in found.kinds.values() if name is None else [found.kind(name)]:
        text = summary(type(kind)) if name is None else inspect.getdoc(type(kind)) or ""
        plugin = found.kind_provider(kind.name)
        facts = f"{kind.head}; {', '.join(kind.metrics)}; {plugin.distribution} {plugin.version}"
        rows.append((kind.name, text, facts))
    Console(highlight=False).print(entries(rows))
