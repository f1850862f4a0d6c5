"""`Needs`: what the cells of a study take of a machine."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass

import torch

from gkd_core.studies.attempt import Attempt
from gkd_core.studies.cell import Cell
from gkd_core.studies.study_folder import ATTEMPTS, TIMING, StudyFolder

MEMORY = 3 * 2**29
"""Bytes that a cell takes as long as none has shown what it takes."""


@dataclass(frozen=True)
class Needs:
    """The resources that a study's cells need, as measured on those that have run.

    Attributes:
        memory: Bytes of memory.
        gpu: Share of a GPU; a whole one as long as no cell has used one.
    """

    memory: int
    gpu: float

    @classmethod
    def of(cls, folder: StudyFolder) -> Needs:
        """Return the largest needs of the cells, and of the short runs of a plan.

        Args:
            folder: The folder of the study.
        """
        timings = (folder.path / TIMING).glob(f"{ATTEMPTS}/*.json")
        own = (folder.attempt(cell) for cell in folder.cells)
        known = [attempt for attempt in (*own, *map(Attempt.load, timings)) if attempt is not None]
        memory = max((attempt.memory for attempt in known), default=0)
        gpu = max((attempt.gpu for attempt in known), default=0.0)
        return cls(memory or MEMORY, min(gpu, 1.0) or 1.0)

    def gpus(self, folder: StudyFolder, cell: Cell) -> float:
        """Return the number of GPUs a cell needs: a share of one, or one for each process.

        Args:
            folder: The folder of the study.
            cell: The cell.
        """
        layout = tomllib.loads(folder.config_file(cell.name).read_text())["parallel"]
        on_gpu = layout["device"] == "cuda" or torch.cuda.is_available()
        if layout["device"] == "cpu" or not on_gpu:
            return 0.0
        return self.gpu if layout["nproc"] == 1 else float(layout["nproc"])
