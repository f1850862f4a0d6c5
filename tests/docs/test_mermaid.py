"""Diagrams are drawn without a script."""

import re
from pathlib import Path

import pytest
from tests.docs.test_demo_figure import load

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "architecture.md"


@pytest.fixture
def mermaid(monkeypatch):
    return load("mermaid", monkeypatch)


def boxes(drawn):
    """Return the middle of each text, by the text."""
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)<', drawn)
    return {text: (float(x), float(y)) for x, y, text in found}


def test_what_leads_to_a_box_is_below_it(mermaid):
    drawn = mermaid.draw('flowchart BT\n  a["the & ground"] --> b --> d\n  a --> c --> d\n')
    found = boxes(drawn)
    assert found["the &amp; ground"][1] > found["b"][1] > found["d"][1]
    assert found["b"][1] == found["c"][1]
    assert found["b"][0] != found["c"][0]
    assert drawn.count("marker-end") == 4


def test_messages_follow_each_other_between_their_ends(mermaid):
    lines = ["participant A as Asker", "participant B", "A->>B: what", "loop each", "B-->>A: this"]
    drawn = mermaid.draw("\n  ".join(["sequenceDiagram", *lines, "B->>B: thinks", "end"]))
    found = boxes(drawn)
    assert found["Asker"][0] < found["what"][0] < found["B"][0]
    assert found["what"][1] < found["loop: each"][1] < found["this"][1] < found["thinks"][1]
    assert drawn.count("stroke-dasharray") == 1


def test_what_cannot_be_drawn_is_named(mermaid):
    with pytest.raises(ValueError, match="pie"):
        mermaid.draw("pie title Pets")
    with pytest.raises(ValueError, match="no chain"):
        mermaid.draw("flowchart BT\n  a ==> b")


def test_the_diagrams_of_the_pages_are_drawn_whole(mermaid):
    sources = re.findall(r"```mermaid\n(.*?)```", PAGE.read_text(), re.S)
    assert len(sources) == 2
    rooms, step = map(mermaid.draw, sources)
    assert {"losses", "training", "studies"} <= boxes(rooms).keys()
    assert {"train_step", "backward"} <= boxes(step).keys()
