"""`superglue/copa`: which of two sentences is the cause or the effect of a premise."""

from __future__ import annotations

from collections.abc import Iterator

from gkd_core.benchmarks.example import Example
from gkd_core.benchmarks.raw_row import RawRow
from gkd_core.benchmarks.superglue.suite import SuperGLUE

CHOICES = ("choice1", "choice2")
ASKED = {"cause": "What was the cause?", "effect": "What happened as a result?"}
JOINED = {"cause": "because", "effect": "so"}


class COPA(SuperGLUE):
    """Which of two sentences is the cause, or the effect, of a premise (Roemmele et al. 2011)."""

    name = "superglue/copa"
    folder = "COPA"
    hub = "aps/super_glue:copa"
    as_encoder = "multiple-choice"
    pattern = "{bare_premise} {joined} {blank}."

    def read(self, row: RawRow) -> Iterator[Example]:
        """Yield the premise with the question, and the choices."""
        premise, question = row.text("premise"), row.text("question")
        if question not in ASKED:
            raise ValueError(f"'question' is {question!r}, neither 'cause' nor 'effect'")
        choices = [row.text(name) for name in CHOICES]
        yield Example(
            text=f"{premise} {ASKED[question]}",
            pair=choices,
            label=row.class_id("label", CHOICES),
            prompt=self.fill(premise=premise, joined=JOINED[question]),
            candidates=[_within(choice) for choice in choices],
        )


def _within(sentence: str) -> str:
    """Return a sentence as it stands within another."""
    first, rest = sentence[0], sentence[1:].rstrip(" .")
    return sentence.rstrip(" .") if sentence.startswith("I ") else first.lower() + rest
