"""`Grid`: a table of text, for the console, a page and files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from gkd_core.analysis.page import PageCell, PageLine, PageTable

SHOWN = 20
"""Rows that the console shows."""

LONGEST = 60
"""Characters of a cell that the console shows."""

NARROW = 14
"""Characters of a line in a column that leaves room for the first one."""

MOST_ROWS = 200
"""Rows of a table that a page shows; its CSV file has all."""

LEADING_NUMBER = re.compile(r"(?:< )?([+-]?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Attributes:
        name: Its name, which is that of its file.
        title: What it shows.
        columns: Headings.
        rows: Cells.
        narrow: Headings of the columns that leave room for the first one on the console.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    narrow: Sequence[str] = ()

    def shown(self) -> Table:
        """Return its first rows for the console."""
        table = Table(
            title=self._title(SHOWN),
            title_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        rows = self.rows[:SHOWN]
        texts = self._texts(rows)
        for number, column in enumerate(self.columns):
            table.add_column(
                column,
                justify="left" if number in texts else "right",
                max_width=NARROW if column in self.narrow else None,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*map(_shortened, row))
        return table

    def on_page(self) -> tuple[str, PageTable]:
        """Return its title and its first rows for a page."""
        shown = self.rows[:MOST_ROWS]
        texts = self._texts(shown)
        rows = [
            PageLine([PageCell(c) if n in texts else _page_cell(c) for n, c in enumerate(row)])
            for row in shown
        ]
        return self._title(MOST_ROWS), PageTable(self.columns, rows, texts)

    def _texts(self, rows: Sequence[Sequence[str]]) -> list[int]:
        """Return the numbers of the columns of text; the first always is one."""
        return [n for n in range(len(self.columns)) if n == 0 or _is_text(row[n] for row in rows)]

    def _title(self, most: int) -> str:
        """Return its title, which says whether rows are left out."""
        count = len(self.rows)
        return self.title if count <= most else f"{self.title} (the first {most} of {count:,})"

    def as_csv(self) -> str:
        """Return it as CSV."""
        buffer = io.StringIO()
        csv.writer(buffer).writerows([self.columns, *self.rows])
        return buffer.getvalue()

    def as_markdown(self) -> str:
        """Return it as a table in Markdown."""
        below = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = (self.columns, below, *self.rows)
        return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(cell: str) -> str:
    """Return a cell for Markdown, where a bar ends it."""
    return " ".join(cell.replace("|", "\\|").split())


def _shortened(cell: str) -> Text:
    """Return a cell for the console, where brackets are no markup."""
    return Text(cell if len(cell) <= LONGEST else f"{cell[:LONGEST]}…")


def _is_text(cells: Iterable[str]) -> bool:
    """Return whether most cells of a column are not numbers."""
    numbers = [LEADING_NUMBER.match(cell) is not None for cell in cells]
    return sum(numbers) * 2 < len(numbers)


def _page_cell(text: str) -> PageCell:
    """Return a cell for a page, which is sorted by the number at its beginning."""
    number = LEADING_NUMBER.match(text)
    return PageCell(text, None if number is None else float(number[1]))
