"""Opening a study: its folder, with the cells that it has now; and which of them are to run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gkd_core.errors import ConfigError
from gkd_core.plugins import Registry
from gkd_core.studies.cell import Cell, CellState
from gkd_core.studies.cells import CellMaker, configs
from gkd_core.studies.design import Combination, combinations
from gkd_core.studies.study_config import StudyConfig
from gkd_core.studies.study_folder import CELLS, StudyFolder
from gkd_core.studies.tuning import cells_of
from gkd_core.studies.validation import score
from gkd_core.training.participants import installed_code


@dataclass(frozen=True)
class Study:
    """A study, some cells of which may not be known before others have run.

    Attributes:
        path: Its folder.
        config: What its file says.
        registry: The plugins.
    """

    path: Path
    config: StudyConfig
    registry: Registry

    def open(self) -> StudyFolder:
        """Write the folder with the cells that are known now, and return it.

        Cells that the study no longer has stay on the disk.

        Raises:
            ConfigError: The folder holds something else, or every cell is dropped.
        """
        code = installed_code(self.registry)
        there = (self.path / CELLS).exists()
        before = StudyFolder.read(self.path, code) if there else None
        known = {} if before is None else _by_name([*before.cells, *before.former])
        maker = CellMaker(
            self.config, self.registry, {n for n, cell in known.items() if not cell.reason}
        )
        empty = StudyFolder(self.path, self.config, (), (), code)
        made = {
            each.cell.name: each
            for each in cells_of(
                self.combinations,
                maker,
                self.config.tune,
                lambda cell: score(empty, cell, self.registry),
            )
        }
        cells = [each.cell for each in made.values()]
        if all(cell.reason for cell in cells):
            raise ConfigError(f"every cell of the study is dropped: {cells[0].reason}")
        former = [c for name, c in known.items() if name not in made and not c.reason]
        folder = StudyFolder(self.path, self.config, cells, former, code)
        folder.write(configs(made.values()))
        return folder

    @property
    def combinations(self) -> list[Combination]:
        """All combinations of values, also those whose cells are dropped or not known yet."""
        installed = {
            "method": sorted(self.registry.methods),
            "recipe": sorted(self.registry.recipes),
        }
        return combinations(self.config, installed)

    def unknown(self, folder: StudyFolder) -> int:
        """Return how many cells become known once trials are over.

        Args:
            folder: The folder as it was opened.
        """
        reported = sum(cell.role == "report" for cell in folder.cells)
        return len(self.combinations) - reported


def to_run(folder: StudyFolder, without: Collection[str], rerun_stale: bool) -> list[Cell]:
    """Return the cells that are to run: those that are waiting or have failed.

    Args:
        folder: The folder of the study.
        without: Names of cells to leave out.
        rerun_stale: Whether to return those that older code has finished as well.
    """
    states = {CellState.WAITING, CellState.FAILED}
    wanted = states | {CellState.STALE} if rerun_stale else states
    return [c for c in folder.cells if c.name not in without and folder.state(c) in wanted]


def _by_name(cells: Iterable[Cell]) -> Mapping[str, Cell]:
    return {cell.name: cell for cell in cells}
