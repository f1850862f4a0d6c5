"""Which students of a study stay on the disk."""

from __future__ import annotations

import shutil

from gkd_core.plugins import Registry
from gkd_core.studies.cell import Cell, CellState
from gkd_core.studies.cost import STUDENT
from gkd_core.studies.study_folder import StudyFolder
from gkd_core.studies.validation import score


def remove_students(folder: StudyFolder, registry: Registry) -> None:
    """Remove the students of finished cells that a study does not keep.

    Several processes may do so at the same time: a student goes only while a better one is there.

    Args:
        folder: The folder of the study.
        registry: The plugins.
    """
    if folder.config.keep == "all":
        return
    there = [cell for cell in folder.cells if _has_student(folder, cell)]
    kept = _best(folder, there, registry) if folder.config.keep == "best" else set()
    for cell in there:
        if cell.name not in kept:
            shutil.rmtree(folder.run_directory(cell) / STUDENT, ignore_errors=True)


def _has_student(folder: StudyFolder, cell: Cell) -> bool:
    is_there = (folder.run_directory(cell) / STUDENT).exists()
    return is_there and folder.state(cell) is CellState.FINISHED


def _best(folder: StudyFolder, cells: list[Cell], registry: Registry) -> set[str]:
    """Return the name of the best cell of each task."""
    best: dict[str, tuple[float, str]] = {}
    for cell in cells:
        found = score(folder, cell, registry)
        if cell.role == "report" and found is not None:
            best[cell.task] = max(best.get(cell.task, (found, cell.name)), (found, cell.name))
    return {name for _, name in best.values()}
