"""`superglue/wsc`: Winograd's schemas, whether a pronoun refers to a noun phrase."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from gkd_core.benchmarks.benchmark import CLOZE
from gkd_core.benchmarks.example import Example
from gkd_core.benchmarks.raw_row import RawRow
from gkd_core.benchmarks.superglue.noun_phrases import noun_phrases
from gkd_core.benchmarks.superglue.suite import SuperGLUE
from gkd_core.contract.task import Split
from gkd_core.data.holdout import take
from gkd_core.kinds.metrics import accuracy

if TYPE_CHECKING:
    from torch import Tensor

    from gkd_core.contract.task import TaskData

WORD = re.compile(r"\S+")
OPENING = "\"'`(.,"
"""Marks before a word."""

NEAR = 2
"""Words by which an index may be wrong; that of a few rows of the official files is."""

OTHER = "something else"
"""The candidate beside the noun phrase in question where no other is found."""


class WSC(SuperGLUE):
    """Whether a pronoun refers to a noun phrase in the same text (Levesque et al. 2012).

    As a cloze, the noun phrase competes with other noun phrases of the text for the place of the
    pronoun: it is meant if it is the likeliest. Rows in which it is not meant are not trained on
    then, because they do not say what is. A row may have a list of `candidates` of its own.
    """

    name = "superglue/wsc"
    folder = "WSC"
    hub = "aps/super_glue:wsc.fixed"
    as_encoder = "span-classification"
    classes = ("false", "true")
    max_length = 128
    pattern = "{text} In the text above, the pronoun '{pronoun}' refers to {blank}."

    def read(self, row: RawRow) -> Iterator[Example]:
        """Yield the text with the places of the noun phrase and the pronoun.

        On the hub, `target` is not an object of its own.
        """
        text = row.text("text")
        target = row.object("target") if "target" in row.values else row
        noun, pronoun = (_place(text, target, name) for name in ("span1", "span2"))
        meant = row.class_id("label", self.classes)
        phrase, referring = text[slice(*noun)], text[slice(*pronoun)]
        own = "candidates" in row.values and row.values["candidates"] is not None
        others = row.texts("candidates") if own else noun_phrases(text)
        yield Example(
            text=text,
            label=1 - meant if self.is_cloze else meant,
            spans=[(0, *noun), (0, *pronoun)],
            prompt=self.fill(text=text, pronoun=referring),
            candidates=[phrase, *(_different(others, phrase, referring) or [OTHER])],
        )

    def taught(self, split: Split) -> Split:
        """Return the rows whose right candidate is known."""
        if not self.is_cloze:
            return split
        known = [row for row, label in enumerate(split.labels or ()) if label == 0]
        return take(split, known)

    def judge(
        self, split: Split, predictions: Tensor | Sequence[Any], data: TaskData
    ) -> dict[str, float]:
        """Return the accuracy; as a cloze, of whether the noun phrase is the likeliest."""
        if data.kind not in CLOZE:
            return {}
        meant = torch.as_tensor(predictions) == 0
        return {"accuracy": accuracy(meant, torch.tensor(split.labels) == 0)}


def _place(text: str, target: RawRow, name: str) -> tuple[int, int]:
    """Return the start and the end of a span in a text.

    The files give the number of its first word, which is wrong by one in a few rows, and its words,
    which may differ in case, spaces and punctuation; in one text other words stand between them.

    Raises:
        ValueError: The words are not there.
    """
    index, wanted = target.number(f"{name}_index"), target.text(f"{name}_text")
    words = list(WORD.finditer(text))
    places = range(max(index - NEAR, 0), min(index + NEAR + 1, len(words)))
    near = [words[place] for place in sorted(places, key=lambda place: abs(place - index))]
    first, *_ = parts = re.findall(r"\w+", wanted) or [re.escape(wanted)]
    for pattern in (r"\W+".join(parts) + r"(?!\w)", r"\W*".join("".join(parts)), first):
        for word in near:
            start = word.end() - len(word[0].lstrip(OPENING))
            found = re.compile(pattern, re.IGNORECASE).match(text, start)
            if found is not None:
                return found.span()
    shown = words[index][0] if 0 <= index < len(words) else "nothing"
    raise ValueError(f"{name}_text is {wanted!r}, but word {index} of the text is {shown!r}")


def _different(candidates: Sequence[str], phrase: str, pronoun: str) -> list[str]:
    """Return the candidates that name something else than a noun phrase and a pronoun do.

    One whose words are among those of the other, such as a surname, may well mean the same.
    """
    taken = [_words(phrase), _words(pronoun)]
    found = {frozenset(_words(candidate)): candidate for candidate in candidates}
    return [
        candidate
        for words, candidate in found.items()
        if not any(words <= other or words >= other for other in taken)
    ]


def _words(phrase: str) -> set[str]:
    """Return the words of a noun phrase without its article."""
    return set(phrase.lower().split()) - {"the", "a", "an"}
