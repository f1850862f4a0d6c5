"""Which tokens a tokenizer needs to split texts as before, of each algorithm."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from gkd_core.errors import ConfigError

UNUSED = re.compile(r"[\[<]unused_?\d+[\]>]")
"""Tokens that were reserved and never given a meaning."""

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""Tokens that stand for a byte of a character that has no token."""


class Pieces(ABC):
    """The algorithm of a tokenizer and its tokens, as `tokenizer.json` has them.

    Args:
        model: The table `model` of the file.
        spells_bytes: Whether a character of a token stands for a byte of the text.
    """

    def __init__(self, model: Mapping[str, Any], spells_bytes: bool) -> None:
        self.model = model
        self.spells_bytes = spells_bytes

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The id of each token."""
        found: Mapping[str, int] = self.model["vocab"]
        return found

    @cached_property
    def tokens(self) -> Mapping[int, str]:
        """The token of each id."""
        return {number: token for token, number in self.ids.items()}

    @abstractmethod
    def cut(self, kept: Mapping[int, int]) -> dict[str, Any]:
        """Return the table `model` with some of the tokens.

        Args:
            kept: The new id of each token that stays, by its old one, in the same order.
        """

    def needs(self, token: str) -> Collection[str]:
        """Return the tokens without which the algorithm never yields a token."""
        return ()

    def alphabet(self) -> Iterator[int]:
        """Yield the tokens that spell words without a token: bytes, or characters of ASCII."""
        prefix = self.model.get("continuing_subword_prefix") or ""
        suffix = self.model.get("end_of_word_suffix") or ""
        for token, number in self.ids.items():
            character = token.removesuffix(suffix)
            if prefix and len(token) > len(prefix):
                character = character.removeprefix(prefix)
            is_letter = len(character) == 1 and (self.spells_bytes or character.isascii())
            if is_letter or BYTE.fullmatch(token):
                yield number

    def closed(self, numbers: Collection[int]) -> set[int]:
        """Return tokens with all that they need."""
        found = set(numbers)
        for number in found & self.tokens.keys():
            found.update(self.ids[token] for token in self.needs(self.tokens[number]))
        return found

    def _cut_ids(self, kept: Mapping[int, int]) -> dict[str, int]:
        return {t: kept[number] for t, number in self.ids.items() if number in kept}


class LongestMatch(Pieces):
    """Whole words, or WordPiece: the longest token that fits comes next.

    A token needs no other, and without some of those that do not occur, the longest stay longest.
    """

    def cut(self, kept: Mapping[int, int]) -> dict[str, Any]:
        """Return the table `model` with some of the tokens."""
        return {**self.model, "vocab": self._cut_ids(kept)}


class Merges(Pieces):
    """Byte pair encoding: of the pairs of neighbors, the one of the lowest rank is merged first.

    A token needs those that it is merged from, on the way that the algorithm takes. Merges of
    tokens that are left out are left out too, which does not change the order of the others.
    """

    @cached_property
    def _ranks(self) -> Mapping[tuple[str, str], int]:
        return {pair: rank for rank, pair in enumerate(self._pairs)}

    @cached_property
    def _pairs(self) -> Sequence[tuple[str, str]]:
        found = self.model["merges"]
        return [tuple(m.split(" ", 1) if isinstance(m, str) else m) for m in found]

    def needs(self, token: str) -> Collection[str]:
        """Return the parts that a token is merged from; nothing if it is taken as it is."""
        parts = self._letters(token)
        found = set(parts)
        while len(parts) > 1:
            ranked = [
                (self._ranks[pair], at)
                for at, pair in enumerate(pairwise(parts))
                if pair in self._ranks
            ]
            if not ranked:
                return ()
            at = min(ranked)[1]
            merged = self._merged(parts[at], parts[at + 1])
            parts[at : at + 2] = [merged]
            found.add(merged)
        return found if found <= self.ids.keys() else ()

    def cut(self, kept: Mapping[int, int]) -> dict[str, Any]:
        """Return the table `model` with some of the tokens, and the merges among them."""
        ids = self._cut_ids(kept)
        merges = [
            list(pair)
            for pair in self._pairs
            if pair[0] in ids and pair[1] in ids and self._merged(*pair) in ids
        ]
        return {**self.model, "vocab": ids, "merges": merges}

    def _letters(self, token: str) -> list[str]:
        """Return a token as the algorithm begins with it: one character each."""
        prefix = self.model.get("continuing_subword_prefix") or ""
        suffix = self.model.get("end_of_word_suffix") or ""
        word = token.removesuffix(suffix) if len(token) > len(suffix) else token
        letters = [prefix + letter if at else letter for at, letter in enumerate(word)]
        if letters and word != token:
            letters[-1] += suffix
        return letters

    def _merged(self, first: str, second: str) -> str:
        prefix = self.model.get("continuing_subword_prefix") or ""
        return first + second.removeprefix(prefix)


class Scores(Pieces):
    """Unigram: the split whose tokens have the greatest sum of scores.

    The likeliest split of a text stays likeliest without tokens that are not in it. What an unknown
    character costs follows from the lowest of all scores, so the token that has it stays.
    """

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The id of each token."""
        return {token: number for number, (token, _) in enumerate(self.model["vocab"])}

    def alphabet(self) -> Iterator[int]:
        """Yield the tokens that spell words without a token, and the one of the lowest score."""
        yield from super().alphabet()
        scores = [score for _, score in self.model["vocab"]]
        yield scores.index(min(scores))

    def cut(self, kept: Mapping[int, int]) -> dict[str, Any]:
        """Return the table `model` with some of the tokens."""
        vocab = [entry for number, entry in enumerate(self.model["vocab"]) if number in kept]
        unknown = self.model.get("unk_id")
        return {**self.model, "vocab": vocab, "unk_id": None if unknown is None else kept[unknown]}


ALGORITHMS: Mapping[str, type[Pieces]] = {
    "WordLevel": LongestMatch,
    "WordPiece": LongestMatch,
    "BPE": Merges,
    "Unigram": Scores,
}


def read_pieces(description: Mapping[str, Any], origin: str) -> Pieces:
    """Return the algorithm and the tokens of a tokenizer.

    Args:
        description: The content of its `tokenizer.json`.
        origin: What it is the tokenizer of, for the error.

    Raises:
        ConfigError: It is another algorithm.
    """
    model = description["model"]
    if model["type"] not in ALGORITHMS:
        raise ConfigError(
            f"student.vocabulary cannot cut the tokenizer of {origin}, which is of type "
            f"{model['type']!r}: it can cut {', '.join(ALGORITHMS)}. Omit the setting"
        )
    spells_bytes = "ByteLevel" in _types(description.get("pre_tokenizer"))
    return ALGORITHMS[model["type"]](model, spells_bytes)


def _types(step: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the types of a step of a tokenizer and of the steps in it."""
    if step is not None:
        yield step["type"]
        for inner in step.get("pretokenizers", ()):
            yield from _types(inner)
