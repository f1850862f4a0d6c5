"""The likeliest tokens of language models, and where those of two models are the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.contract.batch import Batch
from gkd_core.data.encode import BYTES, TEXTS, Encoded
from gkd_core.distributed.data_parallel import collect
from gkd_core.evaluation.evaluate import Predict
from gkd_core.kinds.language_model import sum_by_text
from gkd_core.losses.logits import ModelLogits, most_likely

CHUNK = 256
"""Positions whose logits are held at once."""

COLUMN = "top_tokens"
"""Column of predictions with the likeliest tokens of a text."""

TopTokens: TypeAlias = dict[int, NDArray[np.int64]]
"""The likeliest token at each predicted position of a row, by row."""


class TopTokenWatch:
    """Predicts as a model does, and remembers its likeliest tokens.

    Args:
        predict: Computes the logits of a batch.
    """

    def __init__(self, predict: Predict) -> None:
        self._predict = predict
        self._parts: list[list[tuple[int, NDArray[np.int64]]]] = []

    def __call__(self, batch: Batch) -> ModelLogits:
        """Return the logits of a batch."""
        logits = self._predict(batch)
        found = list(_likeliest(logits, batch))
        if batch.counted:
            self._parts.append(found)
        return logits

    def tokens(self) -> TopTokens:
        """Return the remembered values; every rank must call this, and all return the same."""
        return {row: own for part in collect(self._parts) for row, own in part}


def by_text(tokens: TopTokens, split: Encoded) -> list[NDArray[np.int64]]:
    """Return the tokens of each text, those of its blocks one after the other.

    Args:
        tokens: The tokens of a model.
        split: The rows.
    """
    blocks: list[list[NDArray[np.int64]]] = [[np.zeros(0, np.int64)] for _ in split.extra[BYTES]]
    for row, text in enumerate(split.extra[TEXTS].tolist()):
        blocks[text].append(tokens[row])
    return [np.concatenate(own) for own in blocks]


def same_tokens(mine: TopTokens, theirs: TopTokens, split: Encoded) -> NDArray[np.int64]:
    """Return the number of positions of each text at which two models have the same top token.

    Args:
        mine: The tokens of one model.
        theirs: Those of the other, at the same positions.
        split: The rows, which both have read in the same tokens.
    """
    same = [int((mine[row] == theirs[row]).sum()) for row in range(len(split))]
    return sum_by_text(np.array(same), split)


def _likeliest(logits: ModelLogits, batch: Batch) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each row of a batch with the likeliest tokens at its predicted positions."""
    index, mask = batch.targets.index, batch.targets.mask
    states = logits if isinstance(logits, Tensor) else logits.hidden
    flat = states.flatten(0, -2)
    found = [_top(logits, flat[part]).cpu() for part in torch.split(index, CHUNK)]
    counts = mask.sum(1).tolist()
    rows = torch.split(torch.cat([index.new_empty(0, device="cpu"), *found]), counts)
    return zip(batch.rows.tolist(), (row.numpy() for row in rows), strict=True)


def _top(logits: ModelLogits, states: Tensor) -> Tensor:
    """Return the likeliest token of some rows of logits, or of the states that they come from."""
    return most_likely(states if isinstance(logits, Tensor) else replace(logits, hidden=states))
