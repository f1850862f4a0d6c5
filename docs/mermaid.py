"""Mermaid diagrams as SVG, drawn when the site is built: no script, no network.

Read is as much of the language as these pages use: flowcharts from bottom to top with chains of
`-->`, and sequence diagrams with messages, answers and one level of loops.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

LETTER, LINE, BOX, GAP = 7.2, 18, 32, 28
"""Width of a letter, height of a line and of a box, and the room between boxes, in pixels."""

WIDEST = 24
"""Letters in a line of the text above a message."""

NAMED = re.compile(r'(\w+)(?:\["([^"]*)"\])?')
PARTICIPANT = re.compile(r"participant (\w+)(?: as (.*))?")
MESSAGE = re.compile(r"(\w+)(--?>>)(\w+): (.*)")


class Diagrams(SphinxTransform):
    """Puts a drawing in the place of each diagram."""

    default_priority = 400

    def apply(self, **arguments: Any) -> None:
        """Replace the blocks of a page."""
        for block in self.document.findall(nodes.literal_block):
            if block.get("language") == "mermaid":
                drawn = (
                    f'<div class="diagram" style="overflow-x: auto">{draw(block.astext())}</div>'
                )
                block.replace_self(nodes.raw("", drawn, format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.add_transform(Diagrams)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def draw(source: str) -> str:
    """Return a diagram as SVG, whose ink is the color of the text around it."""
    head, *lines = [line.strip() for line in source.strip().splitlines()]
    if head == "flowchart BT":
        return _draw_flowchart(lines)
    if head == "sequenceDiagram":
        return _draw_sequence(lines)
    raise ValueError(f"a diagram that begins with {head!r} cannot be drawn")


@dataclass
class Flowchart:
    """Boxes with their text, and which leads to which."""

    texts: dict[str, str] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def read(cls, lines: list[str]) -> Flowchart:
        """Read the lines below the first one."""
        chart = cls()
        for line in lines:
            chain = [NAMED.fullmatch(part.strip()) for part in line.split("-->")]
            for part in chain:
                if part is None:
                    raise ValueError(f"{line!r} is no chain of boxes")
                if part[2] or part[1] not in chart.texts:
                    chart.texts[part[1]] = part[2] or part[1]
            names = [part[1] for part in chain if part]
            chart.edges += pairwise(names)
        return chart

    def levels(self) -> dict[str, int]:
        """Return how many boxes at most lead to each."""
        found = dict.fromkeys(self.texts, 0)
        for _ in self.texts:
            for low, high in self.edges:
                found[high] = max(found[high], found[low] + 1)
        return found


def _draw_flowchart(lines: list[str]) -> str:
    chart = Flowchart.read(lines)
    levels = chart.levels()
    widths = {name: LETTER * len(text) + 20 for name, text in chart.texts.items()}
    rows = [
        [n for n in chart.texts if levels[n] == level] for level in range(1 + max(levels.values()))
    ]
    width = max(sum(widths[name] + GAP for name in row) for row in rows)
    height = len(rows) * (BOX + GAP)
    places = {}
    for level, row in enumerate(rows):
        left = (width - sum(widths[name] + GAP for name in row) + GAP) / 2
        for name in row:
            places[name] = (left + widths[name] / 2, height - (level + 1) * (BOX + GAP) + GAP / 2)
            left += widths[name] + GAP
    drawn = [_arrow(*_ends(places[low], places[high])) for low, high in chart.edges]
    for name, (x, y) in places.items():
        drawn += _box(x, y, widths[name], chart.texts[name])
    return _svg(width, height, drawn)


def _ends(low: tuple[float, float], high: tuple[float, float]) -> tuple[float, float, float, float]:
    return low[0], low[1], high[0], high[1] + BOX


def _draw_sequence(lines: list[str]) -> str:
    people = {m[1]: m[2] or m[1] for m in map(PARTICIPANT.fullmatch, lines) if m}
    step = max(LETTER * len(text) for text in people.values()) + GAP
    places = {name: step * (number + 0.5) for number, name in enumerate(people)}
    drawn: list[str] = []
    y: float = BOX + GAP
    loop: tuple[float, str] | None = None
    for line in lines:
        if line.startswith("loop "):
            loop = (y + LINE / 2, line.removeprefix("loop "))
            y += 1.5 * LINE
        elif line == "end" and loop is not None:
            drawn += _loop(4, loop[0] - LINE / 2, step * len(people) - 8, y - loop[0], loop[1])
            loop = None
            y += LINE
        elif message := MESSAGE.fullmatch(line):
            said, y = _message(message, places, y)
            drawn += said
    drawn += [_line(x, BOX, x, y, "stroke-opacity: 0.3") for x in places.values()]
    for name, x in places.items():
        drawn += _box(x, 2, LETTER * len(people[name]) + 16, people[name])
    return _svg(step * len(people), y + 8, drawn)


def _message(message: re.Match[str], places: dict[str, float], y: float) -> tuple[list[str], float]:
    start, end, answers = places[message[1]], places[message[3]], message[2] == "-->>"
    lines = [*_wrapped(message[4])]
    y += LINE * len(lines)
    middle = (start + end) / 2 if start != end else start + LETTER * WIDEST / 2 + 8
    drawn = [
        _text(middle, y - 6 - LINE * (len(lines) - 1 - number), text)
        for number, text in enumerate(lines)
    ]
    if start == end:
        path = f"M {start} {y - 10} h 8 v 10 h -6"
        drawn.append(f'<path d="{path}" style="fill: none; stroke: currentColor"/>')
    else:
        drawn.append(_arrow(start, y, end, y, "stroke-dasharray: 4" if answers else ""))
    return drawn, y + LINE / 2


def _wrapped(text: str) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + len(word) >= WIDEST:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


def _loop(x: float, y: float, width: float, height: float, text: str) -> list[str]:
    style = "fill: none; stroke: currentColor; stroke-opacity: 0.4"
    box = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" style="{style}"/>'
    return [box, _text(x + 6, y + 14, f"loop: {text}", "start")]


def _box(x: float, y: float, width: float, text: str) -> list[str]:
    place = f'x="{x - width / 2}" y="{y}" width="{width}" height="{BOX}" rx="4"'
    style = "fill: var(--color-background-secondary, white); stroke: currentColor"
    return [f'<rect {place} style="{style}"/>', _text(x, y + BOX / 2 + 4, text)]


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    style = "font: 12px sans-serif; fill: currentColor"
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" style="{style}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str = "", more: str = "") -> str:
    ends = f'x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"'
    return f'<line {ends} style="stroke: currentColor; {style}"{more}/>'


def _arrow(x1: float, y1: float, x2: float, y2: float, style: str = "") -> str:
    return _line(x1, y1, x2, y2, style, ' marker-end="url(#tip)"')


def _svg(width: float, height: float, drawn: list[str]) -> str:
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" style="fill: currentColor"/></marker>'
    )
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><defs>{tip}</defs>'
    return f"{head}{''.join(drawn)}</svg>"
