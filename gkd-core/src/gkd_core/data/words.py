"""Word boundaries: which tokens belong to the same word, according to the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACES = ("Ġ", "Ċ", "ĉ", "▁")
"""Markers of leading white space in byte-level BPE (GPT-2) and SentencePiece (Llama)."""


class Words:
    """Numbers the words in rows of token ids.

    WordPiece vocabularies (BERT) mark tokens that continue a word; others mark those that begin
    with white space. If the vocabulary marks neither, every token is a word.

    Args:
        tokenizer: The tokenizer that encoded the rows.

    Attributes:
        starts: True for tokens of the vocabulary that begin a word, bool `[V]`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        tokens = _tokens(tokenizer)
        self.starts = _starts(tokens, _continuation(tokenizer))
        frame = ("bos", "eos", "cls", "sep", "pad")
        ids = {getattr(tokenizer, f"{name}_token_id") for name in frame} - {None}
        # The mask and unknown tokens are not special here: they stand for words.
        self._special = np.zeros(len(tokens), bool)
        self._special[list(ids)] = True

    def number(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the word index of each token of a row, from 0; -1 for special tokens."""
        special = self._special[ids]
        first = np.append(True, special[:-1]) | self.starts[ids]
        return np.where(special, -1, np.cumsum(first & ~special) - 1)


def _tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens in the order of their ids; an id that the vocabulary skips has none: ''."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    tokens = [""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        tokens[index] = token
    return tokens


def _continuation(tokenizer: Any) -> str | None:
    """Return the prefix of tokens that continue a word, if they are marked."""
    return getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None)


def _starts(tokens: list[str], continuation: str | None) -> NDArray[np.bool_]:
    """Return the mask of the tokens of a vocabulary that begin a word, `[V]`."""
    if continuation:
        return np.array([not token.startswith(continuation) for token in tokens])
    marked = np.array([token.startswith(SPACES) for token in tokens])
    return marked if marked.any() else ~marked
