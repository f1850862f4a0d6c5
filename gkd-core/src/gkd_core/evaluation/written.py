"""The similarity of a written text to its target."""

from __future__ import annotations

import re
from collections.abc import Sequence

WORD = re.compile(r"\w+")


def exact_match(written: str, wanted: str) -> float:
    """Return 1 if two texts are equal except for white space at their ends and between words."""
    return float(written.split() == wanted.split())


def rouge_l(written: str, wanted: str) -> float:
    """Return ROUGE-L (Lin, 2004): the F1 of the longest common subsequence of words.

    Words are letters, digits and underscores, in lower case, without stemming.

    Args:
        written: What a model wrote.
        wanted: The reference.
    """
    ours, theirs = (WORD.findall(text.lower()) for text in (written, wanted))
    common = _longest_common(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for one in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if one == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]
