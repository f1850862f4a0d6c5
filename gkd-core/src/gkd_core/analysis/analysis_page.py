"""`analysis.html`: an analysis of runs on one self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gkd_core.analysis.analysis import Analysis, Grid

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #8884 }
th:first-child, td:first-child { text-align: left } td:first-child { max-width: 30rem }
img { max-width: 100%; background: white } .note { opacity: .75 }
"""

CAPTIONS = {
    "distances": "Final distances to the teacher by method, best method first",
    "correlations": "Correlation of each distance with quality",
    "layer-similarity": "Similarity of the layers of student and teacher",
    "losses": "Loss of the last stage",
}
"""Headings of the figures."""

LONGEST = 200
"""Rows of a table that the page shows; its CSV file has all."""


def page(analysis: Analysis, pngs: Mapping[str, bytes]) -> str:
    """Return the page.

    Args:
        analysis: The analysis.
        pngs: Its figures, by name.
    """
    title = ", ".join(dict.fromkeys(run.method for run in analysis.runs))
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f"<p class=note>{escape(note)}</p>" for note in analysis.notes]
    parts += [_figure(name, png) for name, png in pngs.items()]
    parts += [_table(grid) for grid in analysis.grids()]
    head = (
        "<meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>gkd: {escape(title)}</title><style>{STYLE}</style>"
    )
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>"


def _figure(name: str, png: bytes) -> str:
    caption, data = escape(CAPTIONS[name]), base64.b64encode(png).decode()
    return f"<h2>{caption}</h2><img alt='{caption}' src='data:image/png;base64,{data}'>"


def _table(grid: Grid) -> str:
    rows = grid.rows[:LONGEST]
    more = "" if len(rows) == len(grid.rows) else f" (the first {LONGEST} of {len(grid.rows)})"
    head = "".join(f"<th>{escape(column)}</th>" for column in grid.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    title = escape(grid.title + more)
    return f"<h2>{title}</h2><div class=wide><table><tr>{head}</tr>{body}</table></div>"
