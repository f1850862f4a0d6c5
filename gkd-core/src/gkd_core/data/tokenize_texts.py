"""Tokenize some texts, or pairs of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gkd_core.data.byte_offsets import locate_tokens

Ids: TypeAlias = list[list[int]]

STEPS = ("__call__", "_encode_plus")
"""What transformers does with texts before and after the backend."""


class TokenizedTexts(NamedTuple):
    """The tokens of some texts, row by row.

    Attributes:
        ids: The token ids.
        type_ids: The segment ids likewise, or None if the tokenizer has none.
        byte_offsets: Start and end of each token in the text, int32 `[T, 2]`, or None.
    """

    ids: Ids
    type_ids: Ids | None
    byte_offsets: list[NDArray[np.int32]] | None

    def replace_rows(self, rows: Sequence[int], others: TokenizedTexts) -> None:
        """Put other rows in the place of some."""
        columns: Any = zip(self, others, strict=True)
        for column, other in columns:
            if column is not None:
                for row, value in zip(rows, other, strict=True):
                    column[row] = value

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the values of all rows, one after the other, by name."""
        found: dict[str, NDArray[Any]] = {"ids": _joined(self.ids)}
        if self.type_ids is not None:
            found["type_ids"] = _joined(self.type_ids)
        if self.byte_offsets is not None:
            found["byte_offsets"] = np.concatenate(self.byte_offsets)
        return found


def tokenize(
    texts: list[Any],
    pairs: list[Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    located: bool,
) -> TokenizedTexts:
    """Return the tokens of each text or pair, truncated (longest first).

    Args:
        texts: The texts.
        pairs: The second texts likewise, or None.
        tokenizer: The tokenizer.
        max_length: Maximum length of a row in tokens.
        located: Whether to say where each token is in its text.
    """
    made = _by_backend if _is_plain(tokenizer) else _by_transformers
    ids, type_ids, encodings = made(texts, pairs, tokenizer, max_length, located)
    if not located:
        return TokenizedTexts(ids, type_ids, None)
    both = zip(texts) if pairs is None else zip(texts, pairs, strict=True)
    return TokenizedTexts(ids, type_ids, list(map(locate_tokens, encodings, both)))


def _joined(rows: Ids) -> NDArray[np.int32]:
    return np.fromiter(chain.from_iterable(rows), np.int32, sum(map(len, rows)))


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokens are what the backend makes: no subclass changes texts or tokens."""
    own, base = type(tokenizer), PreTrainedTokenizerFast
    return all(getattr(own, step) is getattr(base, step, None) for step in STEPS)


def _by_backend(
    texts: list[Any], pairs: list[Any] | None, tokenizer: Any, max_length: int, located: bool
) -> tuple[Ids, Ids | None, list[Any]]:
    """Return what `_by_transformers` does, sooner."""
    # transformers sets up the backend: truncation, no padding, how special tokens in texts count.
    tokenizer(texts[:1], truncation="longest_first", max_length=max_length)
    backend = tokenizer.backend_tokenizer
    if pairs is not None:
        made = backend.encode_batch(list(zip(texts, pairs, strict=True)))
    elif located:
        made = backend.encode_batch(texts)
    else:
        made = backend.encode_batch_fast(texts)  # no offsets; the segments of pairs may be wrong
    typed = "token_type_ids" in tokenizer.model_input_names
    return [one.ids for one in made], [one.type_ids for one in made] if typed else None, made


def _by_transformers(
    texts: list[Any], pairs: list[Any] | None, tokenizer: Any, max_length: int, located: bool
) -> tuple[Ids, Ids | None, list[Any]]:
    """Return token ids, segment ids if the tokenizer has some, and what the backend made."""
    made = tokenizer(
        texts, pairs, truncation="longest_first", max_length=max_length, return_attention_mask=False
    )
    return made["input_ids"], made.get("token_type_ids"), made.encodings
