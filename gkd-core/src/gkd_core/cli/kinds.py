"""`gkd kinds`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import click

from gkd_core.cli.entries import entries, summary

if TYPE_CHECKING:
    from gkd_core.kinds.task_kind import TaskKind


@click.command()
@click.argument("name", required=False)
def kinds(name: str | None) -> None:
    """List the kinds of task, or describe one."""
    from rich.console import Console

    from gkd_core.plugins import registry

    found = registry()

    def describe(kind: TaskKind) -> tuple[str, str]:
        text = summary(type(kind)) if name is None else inspect.getdoc(type(kind)) or ""
        metrics = ", ".join(kind.metrics)
        return text, f"{kind.head}; {metrics}; {found.owner(kind).release}"

    shown = found.kinds.values() if name is None else [found.kind(name)]
    Console(highlight=False).print(entries(shown, describe))
