"""Lists of what is registered: a name, a summary, and facts in dim print below it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


def entries(rows: Iterable[tuple[str, str, str]]) -> RenderableType:
    """Return a list of names, each with a text and facts.

    Args:
        rows: Name, text and facts of each entry.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text, facts in rows:
        table.add_row(f"  {name}", Text.assemble(f"{text}\n", (facts, "dim")))
    return table


def summary(cls: type) -> str:
    """Return the first line of the docstring of a class."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]
