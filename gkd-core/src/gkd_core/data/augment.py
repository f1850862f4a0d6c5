"""Augmentation: copies of training rows in which some words are others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from gkd_core.contract.task import Split

CHUNK = 1000
"""Texts for which candidates are held at a time."""


class Word(NamedTuple):
    """A word of a text that can be replaced.

    Attributes:
        start: Its first character.
        end: The character after its last.
        position: Its token.
    """

    start: int
    end: int
    position: int


class Proposer(Protocol):
    """Knows the words of a text, and others that would fit in their place."""

    def words(self, texts: Sequence[str]) -> Sequence[Sequence[Word]]:
        """Return the words of each text that can be replaced, in order."""

    def candidates(
        self, texts: Sequence[str], wanted: Sequence[tuple[int, Word]]
    ) -> Sequence[Sequence[str]]:
        """Return what fits in the place of each wanted word (text, word), best first."""


def augment(split: Split, proposer: Proposer, copies: int, share: float, seed: int) -> Split:
    """Return the rows of a split and copies of them in which words are replaced.

    Data augmentation of TinyBERT (Jiao et al., 2020, Algorithm 1): in every copy each word is
    replaced with a probability of `share`, by one of its candidates, all alike. Labels stay. What
    is drawn for a row depends on the seed and on its place alone.

    Args:
        split: The rows.
        proposer: Proposes words.
        copies: Copies of each row.
        share: Probability that a word is replaced.
        seed: Seed of the draws.
    """
    text = [*split.text, *_copies(split.text, proposer, copies, share, [seed, 0])]
    pair = None
    if split.pair is not None:
        pair = [*split.pair, *_copies(split.pair, proposer, copies, share, [seed, 1])]
    labels = None if split.labels is None else list(split.labels) * (copies + 1)
    return Split(text, pair, labels)


def _copies(
    texts: Sequence[str], proposer: Proposer, copies: int, share: float, seed: list[int]
) -> list[str]:
    """Return the copies of all texts: first one of each, then another of each, and so on."""
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
    """Return a text with a random candidate in the place of each picked word."""
    parts: list[str] = []
    end = 0
    for word, picked in zip(words, picks, strict=True):
        if picked and found[row, word]:
            candidates = found[row, word]
            parts += [text[end : word.start], candidates[int(rng.integers(len(candidates)))]]
            end = word.end
    return "".join([*parts, text[end:]])
