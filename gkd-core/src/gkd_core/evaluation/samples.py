"""Samples of the text that a causal language model writes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from gkd_core.data.encode import BYTES, TEXTS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from gkd_core.data.encode import Encoded

PROMPT = 32
"""Longest prompt in tokens that is taken from the beginning of a text."""


@dataclass(frozen=True)
class Sampling:
    """How many samples are written.

    Attributes:
        rows: Number of rows, the first ones.
        new_tokens: Longest continuation in tokens.
    """

    rows: int
    new_tokens: int = 40


def write_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    split: Encoded,
    sampling: Sampling,
) -> dict[str, list[str | None]]:
    """Return columns with prompts and what a model writes after them, greedily; None for the rest.

    The prompt of a row with a target is its text; of plain text, the first half of its tokens, at
    most `PROMPT`.

    Args:
        model: The model, whole and in evaluation mode.
        tokenizer: Its tokenizer.
        split: The rows.
        sampling: How many.
    """
    columns: dict[str, list[str | None]] = {
        name: [None] * len(split.extra[BYTES]) for name in ("prompt", "generated")
    }
    longest = getattr(model.config, "max_position_embeddings", None) or math.inf
    for row, prompt in _prompts(split, sampling.rows):
        ids = torch.from_numpy(prompt.astype(np.int64))[None].to(model.device)
        with torch.no_grad():
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max(1, min(sampling.new_tokens, longest - len(prompt))),
                do_sample=False,
                pad_token_id=_padding(tokenizer),
            )
        columns["prompt"][row] = tokenizer.decode(prompt, skip_special_tokens=True)
        new = written[0, ids.shape[1] :]
        columns["generated"][row] = tokenizer.decode(new, skip_special_tokens=True)
    return columns


def _prompts(split: Encoded, rows: int) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Yield the first rows with the tokens to continue; a row without any is left out."""
    seen: set[int] = set()
    for block, row in enumerate(split.extra[TEXTS].tolist()):
        if row in seen or row >= rows:
            continue
        seen.add(row)
        ids = split.ids[split.part(block)]
        half = min(PROMPT, (len(ids) + 1) // 2)
        yield row, ids[: half if split.prompts is None else int(split.prompts[block])]


def _padding(tokenizer: PreTrainedTokenizerFast) -> int:
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)
