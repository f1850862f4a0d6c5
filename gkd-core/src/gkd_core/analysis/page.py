"""Self-contained pages from templates that share style, tables and figures.

`templates/page.html.jinja` is the frame of every page, with a script that sorts tables (`page.js`).
Nothing in a page makes a request, which its content security policy also forbids.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

TEMPLATES = "templates"


@dataclass(frozen=True)
class PageCell:
    """A cell of a table: its text, and the number by which a column is sorted, if it has one."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class PageLine:
    """A row of a table; the row of the student is marked."""

    cells: Sequence[PageCell]
    marked: bool = False


@dataclass(frozen=True)
class PageTable:
    """A table; `texts` are the numbers of its columns of running text."""

    headings: Sequence[str]
    rows: Sequence[PageLine]
    texts: Sequence[int] = ()


def render(template: str, **values: Any) -> str:
    """Return a page.

    Args:
        template: Name of the template.
        values: What it shows.
    """
    script = _resource("page.js")
    return section(template, script=script, script_hash=_hash(script), **values)


def section(template: str, **values: Any) -> str:
    """Return a part of a page; arguments as for `render`."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_resource)
    )
    return environment.get_template(template).render(**values)


def _resource(name: str) -> str:
    return files(__package__).joinpath(TEMPLATES, name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """Return the hash of a script in the content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
