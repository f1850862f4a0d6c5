"""`superglue/wic`: whether a word has the same sense in two sentences."""

from __future__ import annotations

from collections.abc import Iterator

from gkd_core.benchmarks.example import Example
from gkd_core.benchmarks.raw_row import RawRow
from gkd_core.benchmarks.superglue.suite import SuperGLUE


class WiC(SuperGLUE):
    """Whether a word has the same sense in two sentences (Pilehvar and Camacho-Collados 2019)."""

    name = "superglue/wic"
    folder = "WiC"
    hub = "aps/super_glue:wic"
    as_encoder = "span-classification"
    classes = ("false", "true")
    pattern = '"{first}" / "{second}" Similar sense of "{word}"? {blank}.'
    words = ("No", "Yes")

    def read(self, row: RawRow) -> Iterator[Example]:
        """Yield the sentences with the places of the word in them."""
        first, second = row.text("sentence1"), row.text("sentence2")
        yield Example(
            text=first,
            pair=second,
            label=row.class_id("label", self.classes),
            spans=[(0, *_place(row, "1", first)), (1, *_place(row, "2", second))],
            prompt=self.fill(first=first, second=second, word=row.text("word")),
        )


def _place(row: RawRow, number: str, sentence: str) -> tuple[int, int]:
    """Return the start and the end of the word in a sentence."""
    start, end = row.number(f"start{number}"), row.number(f"end{number}")
    if not 0 <= start < end <= len(sentence) or not sentence[start:end].strip():
        raise ValueError(
            f"there is no word from start{number} = {start} to end{number} = {end} of "
            f"'sentence{number}'"
        )
    return start, end
