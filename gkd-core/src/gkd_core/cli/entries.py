"""Lists of what is registered: a name, a summary, and facts in dim print below it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


def entries(
    things: Iterable[Any],
    describe: Callable[[Any], tuple[str, str]],
    name: Callable[[Any], str] = attrgetter("name"),
) -> RenderableType:
    """Return a list of names, each with a text and facts.

    Args:
        things: Such as classes of methods.
        describe: Returns text and facts of one. What it raises is shown instead of them, for one
            plugin cannot end the list of all.
        name: Returns the name of one.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for thing in things:
        try:
            text, facts = describe(thing)
        except Exception as error:
            text, facts = "It cannot be described:", reason(thing, error)
        table.add_row(f"  {name(thing)}", Text.assemble(f"{text}\n", (facts, "dim")))
    return table


def reason(thing: Any, error: Exception) -> str:
    """Return the reason that something registered cannot be described, with its plugin."""
    from gkd_core.plugins import registry

    found = registry()
    return str(found.blame(error) or f"plugin {found.owner(thing)}: {error}")


def summary(cls: type) -> str:
    """Return the first line of the docstring of a class."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]
