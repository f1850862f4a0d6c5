"""Calibration rows, on which the importance of heads and neurons is measured."""

from __future__ import annotations

from gkd_core.contract.batch import Batch
from gkd_core.data.collate import EVALUATION_EPOCH
from gkd_core.data.holdout import fewer
from gkd_core.training.stage_spec import StageSpec

ROWS = 512
BATCH = 32


def calibration_batches(spec: StageSpec, rows: int = ROWS) -> list[Batch]:
    """Return batches of training rows, the same on every rank and for every seed.

    Validation and test rows are not used: they select and evaluate models.

    Args:
        spec: The stage whose rows are used.
        rows: Number of rows, taken evenly from the classes; all if there are no more.
    """
    encoded = spec.encode(fewer(spec.data.train, rows), spec.tokenizer)
    collator = spec.collator(spec.tokenizer)
    numbers = range(len(encoded))
    return [
        collator.collate(encoded, list(numbers[start : start + BATCH]), EVALUATION_EPOCH)
        for start in range(0, len(encoded), BATCH)
    ]
