"""`gkd recipes`."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

import click

from gkd_core.cli.entries import entries, summary

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console, RenderableType

    from gkd_core.analysis.recipes import Recipe
    from gkd_core.contract.procedure import Procedure


@click.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the recipes and procedures, or describe one.

    Says what its stages train and what it needs.
    """
    from rich.console import Console

    from gkd_core.plugins import registry

    console = Console(highlight=False)
    if name is None:
        _list(console)
    elif name in registry().recipes or name not in registry().procedures:
        _show_recipe(console, name)
    else:
        _show_procedure(console, registry().procedures[name])


def _list(console: Console) -> None:
    from gkd_core.plugins import registry

    packages: dict[str, list[Path]] = {}
    for path in registry().recipes.values():
        packages.setdefault(_origin(path), []).append(path)
    for package, paths in packages.items():
        console.print(package, style="bold", markup=False)
        console.print(entries(paths, _describe, attrgetter("stem")))
        console.print()
    if registry().procedures:
        console.print("procedures, which generate stages", style="bold")
        console.print(entries(registry().procedures.values(), _describe_procedure))
        console.print()
    console.print("Start from one: gkd run --recipe distilbert\nStages:         gkd recipes NAME")


def _describe(path: Path) -> tuple[str, str]:
    """Return description and facts of a recipe; why it cannot be used, if it is wrong."""
    from gkd_core.analysis.explanation import short_reference
    from gkd_core.analysis.recipes import read_recipe
    from gkd_core.errors import GkdError
    from gkd_core.plugins import registry

    try:
        found = read_recipe(path.stem, registry())
    except GkdError as error:
        return "It cannot be used.", str(error)
    text = found.about.get("description", "") or found.about.get("title", "")
    reference = short_reference(found.about.get("paper", ""))
    facts = [reference, found.summary, f"needs {', '.join(found.needs)}"]
    return text, "; ".join(filter(None, facts))


def _describe_procedure(procedure: type[Procedure]) -> tuple[str, str]:
    from gkd_core.analysis.explanation import short_reference

    facts = f"{short_reference(procedure.paper)}; {_origin(procedure)}"
    return summary(procedure), facts


def _show_recipe(console: Console, name: str) -> None:
    from gkd_core.analysis.recipes import read_recipe
    from gkd_core.plugins import registry

    path = registry().recipe(name)
    recipe = read_recipe(name, registry())
    console.print(f"[bold]{name}[/]  ({_origin(path)})")
    for text in recipe.about.values():
        console.print(text, markup=False)
    console.print()
    console.print(_facts(recipe))
    console.print(f"file   {path}", markup=False, soft_wrap=True)
    if recipe.procedure is not None:
        console.print()
        _show_procedure(console, registry().procedure(recipe.procedure))


def _facts(recipe: Recipe) -> RenderableType:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for stage in () if recipe.procedure else recipe.stages:
        table.add_row("stage", f"{stage.name}: {stage.expression}; task: {stage.task}")
    if recipe.procedure is not None:
        table.add_row("stages", recipe.summary)
    table.add_row("needs", "\n".join(recipe.needs))
    table.add_row("run", f"gkd run --recipe {recipe.name}")
    return table


def _show_procedure(console: Console, procedure: type[Procedure]) -> None:
    from gkd_core.cli.methods import print_docstring, print_options

    console.print(f"procedure [bold]{procedure.name}[/]  ({_origin(procedure)})")
    console.print(procedure.paper, markup=False)
    print_docstring(console, procedure)
    print_options(console, "procedure", procedure.Config)


def _origin(thing: object) -> str:
    """Return the distribution and version that a recipe file or a procedure is from."""
    from gkd_core.plugins import registry

    return registry().owner(thing).release
