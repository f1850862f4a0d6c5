"""The quality of a cell's student on validation rows, by which choices are made."""

from __future__ import annotations

import math

from gkd_core.errors import GkdError
from gkd_core.plugins import Registry
from gkd_core.studies.cell import Cell, CellState
from gkd_core.studies.outcome import Outcome
from gkd_core.studies.study_folder import StudyFolder


def score(folder: StudyFolder, cell: Cell, registry: Registry) -> float | None:
    """Return the validation metric of a cell's student, with the sign that makes larger better.

    Args:
        folder: The folder of the study.
        cell: The cell.
        registry: The plugins.

    Returns:
        The score; minus infinity of a cell that failed or has left none; None if it is not over.
    """
    state = folder.state(cell)
    if state is CellState.FAILED:
        return -math.inf
    if state not in (CellState.FINISHED, CellState.STALE):
        return None
    try:
        outcome = Outcome.read(folder.run_directory(cell), registry)
    except GkdError:
        return -math.inf
    if outcome.validation is None:
        return -math.inf
    return outcome.validation if outcome.metric.higher_is_better else -outcome.validation
