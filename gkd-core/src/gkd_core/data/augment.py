"""Augmentation: copies of training rows with some words replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from gkd_core.contract.task import Split

CHUNK = 1000
"""Number of texts whose candidates are held in memory at a time."""


class Word(NamedTuple):
    """A word of a text that can be replaced.

    Attributes:
        start: Index of its first character.
        end: Index after its last character.
        position: Position of its token.
    """

    start: int
    end: int
    position: int


class Proposer(Protocol):
    """Proposes replacements for the words of a text."""

    def words(self, texts: Sequence[str]) -> Sequence[Sequence[Word]]:
        """Return the replaceable words of each text, in order."""

    def candidates(
        self, texts: Sequence[str], wanted: Sequence[tuple[int, Word]]
    ) -> Sequence[Sequence[str]]:
        """Return the candidates for each requested (text, word), best first."""


def augment(split: Split, proposer: Proposer, copies: int, share: float, seed: int) -> Split:
    """Return the rows of a split plus copies of them with words replaced.

    This is TinyBERT's data augmentation (Jiao et al., 2020, Algorithm 1): in every copy, each word
    is replaced with probability `share` by one of its candidates, drawn uniformly. Labels are kept.
    The replacements in a row depend only on the seed and its index.

    Args:
        split: The rows.
        proposer: Proposes replacements.
        copies: Copies per row.
        share: Probability that a word is replaced.
        seed: Seed of the random choices.
    """
    text = [*split.text, *_copies(split.text, proposer, copies, share, [seed, 0])]
    pair = None
    if split.pair is not None:
        pair = [*split.pair, *_copies(split.pair, proposer, copies, share, [seed, 1])]
    labels = None if split.labels is None else list(split.labels) * (copies + 1)
    group = None if split.group is None else list(split.group) * (copies + 1)
    source = None if split.source is None else list(split.source) * (copies + 1)
    return Split(text, pair, labels, group, source=source)


def _copies(
    texts: Sequence[str], proposer: Proposer, copies: int, share: float, seed: list[int]
) -> list[str]:
    """Return the copies of all texts: the first copy of each text, then the second, and so on."""
    made: list[list[str]] = [[] for _ in range(copies)]
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        words = proposer.words(chunk)
        rngs = [np.random.default_rng([*seed, start + row]) for row in range(len(chunk))]
        chosen = [
            rng.random((copies, len(of_text))) < share
            for rng, of_text in zip(rngs, words, strict=True)
        ]
        wanted = [
            (row, word)
            for row, of_text in enumerate(words)
            for word, often in zip(of_text, chosen[row].sum(0), strict=True)
            if often
        ]
        found = dict(zip(wanted, proposer.candidates(chunk, wanted), strict=True))
        for row, text in enumerate(chunk):
            for copy, picks in zip(made, chosen[row], strict=True):
                copy.append(_replaced(text, row, words[row], picks, found, rngs[row]))
    return [text for copy in made for text in copy]


def _replaced(
    text: str,
    row: int,
    words: Sequence[Word],
    picks: Sequence[bool],
    found: dict[tuple[int, Word], Sequence[str]],
    rng: np.random.Generator,
) -> str:
    """Return a text with each selected word replaced by a random candidate."""
    parts: list[str] = []
    end = 0
    for word, picked in zip(words, picks, strict=True):
        if picked and found[row, word]:
            candidates = found[row, word]
            parts += [text[end : word.start], candidates[int(rng.integers(len(candidates)))]]
            end = word.end
    return "".join([*parts, text[end:]])
