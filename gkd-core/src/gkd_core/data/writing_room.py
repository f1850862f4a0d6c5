"""Rows whose prompts leave room for what models write after them."""

from __future__ import annotations

from dataclasses import replace

from gkd_core.data.encode import Encoded
from gkd_core.data.some_rows import some_rows


def rows_with_room(encoded: Encoded, longest: int) -> Encoded:
    """Return the rows whose prompts have at most so many tokens; plain texts have no prompts.

    A prompt that is cut has lost its end, such as the line after which the assistant speaks: a
    model would go on with the user's sentence.

    Args:
        encoded: Rows of a causal language model.
        longest: Tokens of the longest prompt.
    """
    if encoded.prompts is None:
        return encoded
    kept = encoded.prompts <= longest
    if kept.all():
        return encoded
    return replace(some_rows(encoded, kept), num_long_prompts=int((~kept).sum()))
