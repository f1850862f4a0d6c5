"""`gkd tasks`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gkd_core.cli.entries import entries, summary

if TYPE_CHECKING:
    from rich.console import Console

    from gkd_core.contract.task import Task


@click.command()
@click.argument("name", required=False)
def tasks(name: str | None) -> None:
    """List the tasks, or show one with its data and options."""
    from rich.console import Console

    from gkd_core.plugins import registry

    console = Console(highlight=False)
    if name is None:
        _list(console)
    else:
        _show(console, registry().task(name))


def _list(console: Console) -> None:
    from gkd_core.plugins import registry

    packages: dict[str, list[type[Task]]] = {}
    for task in registry().tasks.values():
        packages.setdefault(_origin(task), []).append(task)
    for package, members in packages.items():
        console.print(package, style="bold", markup=False)
        console.print(entries(members, _describe))
        console.print()
    console.print("Choose one: gkd run --task superglue/rte --data DIR\nMore:       gkd tasks NAME")


def _describe(task: type[Task]) -> tuple[str, str]:
    """Return a task's description, kind, metric and data."""
    facts = task.facts()
    return summary(task), f"{facts['kind']}; {facts['metric']}; {facts['data']}"


def _show(console: Console, task: type[Task]) -> None:
    from rich.table import Table
    from rich.text import Text

    from gkd_core.cli.methods import print_docstring, print_options

    console.print(f"[bold]{task.name}[/]  ({_origin(task)})")
    print_docstring(console, task)
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for fact, value in task.facts().items():
        table.add_row(fact, Text(value))
    console.print(table)
    print_options(console, task.name, task.Config)


def _origin(task: type[Task]) -> str:
    from gkd_core.plugins import registry

    return registry().owner(task).release
