"""`gkd plugins`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from gkd_core.cli.json_output import json_option

if TYPE_CHECKING:
    from rich.console import Console


@click.command()
@json_option()
def plugins(as_json: bool) -> dict[str, Any] | None:
    """List the installed plugins and what they provide.

    Plugins are listed in loading order. The time includes importing a plugin and asking what it
    provides, but not the import of torch and transformers.
    """
    from rich.console import Console

    found = _found()
    if as_json:
        return found
    _print(Console(highlight=False), found)
    return None


def _found() -> dict[str, Any]:
    # The first plugin that needs it would seem to take the time of this import.
    import transformers.modeling_utils  # noqa: F401

    from gkd_core.plugins import registry

    known = registry()
    provided = known.provided()
    loaded = [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "seconds": round(known.seconds_of(key), 4),
            "hooks": known.hooks_of(key),
            "provides": provided[plugin],
        }
        for key, plugin in known.plugins.items()
    ]
    return {"plugins": loaded, "skipped": [str(skipped) for skipped in known.skipped]}


def _print(console: Console, found: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    for number, plugin in enumerate(found["plugins"], start=1):
        title = f"{plugin['name']}", "bold"
        origin = f"  {plugin['distribution']} {plugin['version']}"
        console.print(Text.assemble(title, origin))
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("  hooks", ", ".join(plugin["hooks"]))
        for kind, names in plugin["provides"].items():
            table.add_row(f"  {kind}", ", ".join(names))
        table.add_row("  loaded", f"{number} of {len(found['plugins'])}, {plugin['seconds']:.3f} s")
        console.print(table)
    for skipped in found["skipped"]:
        console.print(Text(f"skipped: {skipped}"), soft_wrap=True)
