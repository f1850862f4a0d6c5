"""How good the student of a cell is on validation rows, by which things are chosen."""

from __future__ import annotations

import math

from gkd_core.analysis.finished_run import FinishedRun
from gkd_core.contract.run_info import STAGES
from gkd_core.evaluation.predictions import PREDICTIONS, ROWS, ModelPredictions
from gkd_core.plugins import Registry
from gkd_core.runs.directory import DONE
from gkd_core.runs.result import StageResult
from gkd_core.studies.cell import Cell, CellState
from gkd_core.studies.study_folder import StudyFolder


def score(folder: StudyFolder, cell: Cell, registry: Registry) -> float | None:
    """Return the validation metric of a cell's student, with the sign that makes larger better.

    Args:
        folder: The folder of the study.
        cell: The cell.
        registry: The plugins.

    Returns:
        The score; minus infinity of a cell that failed; None if it is not over.
    """
    state = folder.state(cell)
    if state is CellState.FAILED:
        return -math.inf
    if state not in (CellState.FINISHED, CellState.STALE):
        return None
    run = FinishedRun.read(folder.run_directory(cell), registry)
    best = StageResult.load(run.directory / STAGES / run.stage / DONE).best
    if best is None or math.isnan(best):
        return -math.inf
    return best if _rises(run, registry) else -best


def _rises(run: FinishedRun, registry: Registry) -> bool:
    """Tell whether larger values of a run's metric are better."""
    kind = registry.kind(
        ModelPredictions.read(run.directory / PREDICTIONS / f"{ROWS}.parquet").about.kind
    )
    return kind.metric.name != run.metric or kind.metric.higher_is_better
