"""`Example`: a row of a benchmark as models read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gkd_core.contract.task import Split

SpanPlaces = Sequence[tuple[int, int, int]]
"""Spans of a row as `Split.spans` has them."""


@dataclass(frozen=True)
class Example:
    """A row as an encoder reads it, and as a cloze.

    Attributes:
        text: The text.
        pair: The second text, or a list of choices.
        label: A class id, the number of the right choice, or a value.
        group: The name of the group of rows that it belongs to.
        spans: The parts of the texts that an encoder reads besides the whole.
        prompt: All texts as one, with a blank.
        candidates: What may stand in the blank; None for the words of the classes.
        answers: The right ones of several candidates.
    """

    text: str
    pair: str | Sequence[str] | None = None
    label: Any = None
    group: str | None = None
    spans: SpanPlaces | None = None
    prompt: str = ""
    candidates: Sequence[str] | None = None
    answers: Sequence[str] | None = None


def columns(examples: Sequence[Example], cloze: bool) -> Split:
    """Return examples as a split; a column without any value is None.

    Args:
        examples: The rows.
        cloze: Whether a model fills in the blank of the prompts.
    """
    return Split(
        text=[example.prompt if cloze else example.text for example in examples],
        pair=column(examples, "candidates" if cloze else "pair"),
        labels=column(examples, "label"),
        group=column(examples, "group"),
        spans=None if cloze else column(examples, "spans"),
    )


def column(examples: Sequence[Example], name: str) -> list[Any] | None:
    """Return a value of each example; None if no example has one."""
    values = [getattr(example, name) for example in examples]
    return None if all(value is None for value in values) else values
