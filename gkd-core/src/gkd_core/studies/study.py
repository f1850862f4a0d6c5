"""Opening a study: its folder, with the cells that it has now."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gkd_core.errors import ConfigError
from gkd_core.lease import hold
from gkd_core.plugins import Registry
from gkd_core.studies.cell import Cell
from gkd_core.studies.cells import CellMaker, configs
from gkd_core.studies.design import AxisPoint, axis_points
from gkd_core.studies.study_config import StudyConfig
from gkd_core.studies.study_folder import CELLS, TIMING, StudyFolder
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

        Cells that the study no longer has stay on the disk. Other commands may run the study, too:
        if one has listed cells meanwhile, this one looks again, as it would else remove them.

        Raises:
            ConfigError: The folder holds something else, or every cell is dropped.
        """
        while True:
            before = self._listed
            folder, texts = self._known_now()
            folder.write_configs(texts)
            with hold(self.path / CELLS, wait=True):
                if self._listed == before:
                    folder.write()
                    return folder

    @property
    def _listed(self) -> bytes | None:
        """What the folder says of its cells; None if there is none."""
        file = self.path / CELLS
        return file.read_bytes() if file.exists() else None

    def _known_now(self) -> tuple[StudyFolder, Mapping[str, str]]:
        """Return the folder with the cells that are known now, and their configurations."""
        known = {} if self._before is None else _by_name(self._before.cells, self._before.former)
        empty = StudyFolder(self.path, self.config, (), (), self._code)
        made = {
            each.cell.name: each
            for each in cells_of(
                self.points,
                self.maker,
                self.config.tune,
                lambda cell: score(empty, cell, self.registry),
            )
        }
        cells = [each.cell for each in made.values()]
        if all(cell.reason for cell in cells):
            raise ConfigError(f"every cell of the study is dropped: {cells[0].reason}")
        former = [c for name, c in known.items() if name not in made and not c.reason]
        return replace(empty, cells=cells, former=former), configs(made.values())

    @functools.cached_property
    def maker(self) -> CellMaker:
        """Makes its cells."""
        before = [] if self._before is None else [*self._before.cells, *self._before.former]
        return CellMaker(self.config, self.registry, [c for c in before if not c.reason])

    @functools.cached_property
    def _code(self) -> Mapping[str, Mapping[str, str]]:
        return installed_code(self.registry)

    @property
    def _before(self) -> StudyFolder | None:
        there = (self.path / CELLS).exists()
        return StudyFolder.read(self.path, self._code) if there else None

    def open_timing(self) -> StudyFolder:
        """Write the folder of short runs that show what cells cost, and return it."""
        timings = [self.maker.make_timing(each) for each in self.possible]
        made = {each.cell.name: each for each in reversed(timings)}  # the first of those alike
        folder = StudyFolder(
            self.path / TIMING,
            self.config,
            [each.cell for each in reversed(made.values())],
            (),
            self._code,
        )
        folder.write_configs(configs(made.values()))
        folder.write()
        return folder

    @property
    def possible(self) -> list[AxisPoint]:
        """A point for each group that differs by more than the seed and is not dropped."""
        first = {each.group: each for each in reversed(self.points)}
        return [c for c in reversed(first.values()) if not self.maker.prepare(c).refusal]

    @property
    def points(self) -> list[AxisPoint]:
        """All points on its axes, also those whose cells are dropped or not known yet."""
        installed = {
            "method": sorted(self.registry.methods),
            "recipe": sorted(self.registry.recipes),
        }
        return axis_points(self.config, installed)

    def unknown(self, folder: StudyFolder) -> int:
        """Return the number of cells that become known once trials are over.

        Args:
            folder: The folder as it was opened.
        """
        if self.config.tune is None:
            return 0
        reported = sum(cell.role == "report" for cell in folder.cells)
        return len(self.points) - reported


def _by_name(*cells: Iterable[Cell]) -> Mapping[str, Cell]:
    return {cell.name: cell for some in cells for cell in some}
