"""The positions of tokens in the UTF-8 text that they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Encoding

NOWHERE = -1
"""Offset of a special token and of padding, which stand for no text."""


def locate_tokens(encoding: Encoding, texts: Sequence[str]) -> NDArray[np.int32]:
    """Return the start and end of each token in the bytes of the texts, one after the other.

    Args:
        encoding: The tokens, with their offsets in characters.
        texts: The text, or the two texts of a pair.

    Returns:
        int32 `[T, 2]`; `NOWHERE` for special tokens. Tokens that share a character, as those of a
        byte-level vocabulary may, all have the offsets of the whole character.
    """
    located = np.full((len(encoding.ids), 2), NOWHERE, np.int32)
    characters = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    sequences = np.array([-1 if s is None else s for s in encoding.sequence_ids])
    begin = 0
    for number, text in enumerate(texts):
        own = sequences == number
        positions = byte_positions(text)
        located[own] = begin + positions[characters[own]]
        begin += int(positions[-1])
    return located


def byte_positions(text: str) -> NDArray[np.int64]:
    """Return the byte at which each character begins, and the number of bytes; int64 `[N + 1]`."""
    if text.isascii():
        return np.arange(len(text) + 1)
    return np.cumsum([0, *(len(character.encode()) for character in text)])


def unpreceded(text: str, encoding: Encoding, block: Sequence[int] | NDArray[np.int64]) -> int:
    """Return the bytes of the first token of a block, which no token precedes.

    Args:
        text: The text.
        encoding: Its tokens.
        block: Positions of the tokens of the block; if the first is a special token, the answer
            is 0.
    """
    first, *following = [encoding.token_to_chars(int(at)) for at in block[:2]]
    if first is None:
        return 0
    end = next((start for start, _ in filter(None, following)), first[1])
    return len(text[first[0] : end].encode())


def cut_blocks(
    text: str, located: NDArray[np.int32], blocks: Sequence[NDArray[np.int64]]
) -> list[tuple[str, NDArray[np.int32]]]:
    """Divide a text like its tokens: each block begins where the one before ends.

    Args:
        text: The text.
        located: Offsets of all its tokens, as from `locate_tokens`.
        blocks: Positions of the tokens of each block, with special tokens.

    Returns:
        The text of each block, and the offsets of its tokens in this text.
    """
    encoded, begin, found = text.encode(), 0, []
    for number, block in enumerate(blocks, 1):
        end = len(encoded) if number == len(blocks) else int(located[block].max())
        own = located[block]
        own = np.where(own == NOWHERE, NOWHERE, np.clip(own - begin, 0, None))
        found.append((encoded[begin:end].decode(), own.astype(np.int32)))
        begin = end
    return found
