"""The divergence of a model from another, measured while both read the rows.

Distributions over a vocabulary, or over the tokens of a window, are too large to keep.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gkd_core.contract.batch import Batch
from gkd_core.distributed.data_parallel import collect
from gkd_core.evaluation.evaluate import Predict
from gkd_core.losses.divergences import kl
from gkd_core.losses.logits import ModelLogits, match_vocabulary

COLUMN = "kl"
"""Column of predictions with the divergence of each row, in nats."""


class DivergenceWatch:
    """Predicts as a model does, and measures how far it is from another.

    Args:
        predict: Computes the logits of a batch.
        reference: Computes those of the other model; None if it is the same, and nothing is apart.
    """

    def __init__(self, predict: Predict, reference: Predict | None) -> None:
        self._predict = predict
        self._reference = reference
        self._parts: list[tuple[list[int], list[float]]] = []

    def __call__(self, batch: Batch) -> ModelLogits:
        """Return the logits of a batch."""
        logits = self._predict(batch)
        if self._reference is None:
            return logits
        known = match_vocabulary(self._reference(batch), logits.shape[-1])
        if batch.counted:
            apart = kl(logits, known, batch.targets).values.double().flatten(1).sum(1)
            self._parts.append((batch.rows.tolist(), apart.tolist()))
        return logits

    def values(self, rows: int) -> NDArray[np.float64]:
        """Return KL(other || model) of each row that the models read, summed over its items.

        Every rank must call this, and all return the same.

        Args:
            rows: Number of rows.
        """
        found = np.zeros(rows)
        for numbers, apart in collect(self._parts):
            found[numbers] = apart
        return found
