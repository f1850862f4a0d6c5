"""The teacher's probability of tokens that its student does not have."""

from __future__ import annotations

import torch
from torch import Tensor

from gkd_core.errors import MethodError
from gkd_core.losses.logits import LinearLogits, Logits
from gkd_core.losses.top_k import TopKLogits

ROWS = 1024
"""Tokens whose nearest ones are sought at once."""


def nearest_columns(logits: Logits, width: int) -> Tensor:
    """Return the column that stands for each column that a student lacks, int64 `[V - width]`.

    It is the one of the first `width` whose output embedding has the greatest dot product with that
    of the other.

    Args:
        logits: A teacher's, `[*items, V]`.
        width: The student's number of columns.

    Raises:
        MethodError: The teacher's head is not known.
    """
    if not isinstance(logits, LinearLogits) or logits.divided is not None:
        raise MethodError(
            "the nearest tokens are found in the teacher's output embedding, which is not "
            "available: its logits come from elsewhere, its head is more than a linear map, or it "
            "is divided"
        )
    known, others = logits.weight.detach().tensor_split([width])
    starts = range(0, len(others), ROWS)
    parts = [(others[start : start + ROWS] @ known.T).argmax(-1) for start in starts]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=known.device)


def merged_columns(logits: Logits, nearest: Tensor, temperature: float) -> Tensor:
    """Return logits of the student's columns, with the probability of the others added to them.

    At the temperature, the probability of a column is the sum of its own and of those that it
    stands for. All logits are held at once.

    Args:
        logits: A teacher's, `[*items, V]`, constant.
        nearest: The column that stands for each of the last ones, int64 `[V - width]`.
        temperature: T, by which the loss will divide them.
    """
    if isinstance(logits, TopKLogits):
        logits.refuse("the logits of all words")
    dense = logits.dense() if isinstance(logits, LinearLogits) else logits
    softened = dense / temperature
    peak = softened.amax(-1, keepdim=True)
    shares = (softened - peak).exp()
    own, others = shares.tensor_split([shares.shape[-1] - len(nearest)], dim=-1)
    return (own.index_add(-1, nearest, others).log() + peak) * temperature
