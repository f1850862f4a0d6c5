"""`StudyFolder`: what a study has on the disk.

study.toml        the study
cells.json        every cell that the study has ever had
configs/NAME.toml the complete configuration of a cell
cells/NAME/       the directory of its run
attempts/NAME.*   how it went: a record, and what it printed
timing/           the same of short runs that show what cells cost
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from gkd_core.atomic import write_file
from gkd_core.contract.run_info import STAGES
from gkd_core.errors import ConfigError
from gkd_core.lease import Holder, holder
from gkd_core.runs.inputs import CODE, CORE, VERSIONS
from gkd_core.runs.run_files import REPORT, RESULTS
from gkd_core.strict_json import json_text
from gkd_core.studies.attempt import Attempt
from gkd_core.studies.cell import Cell, CellState
from gkd_core.studies.study_config import StudyConfig, read_study
from gkd_core.training.manifest import MANIFEST, Inputs, Manifest

STUDY = "study.toml"
CELLS = "cells.json"

ATTEMPTS = "attempts"

TIMING = "timing"
"""The folder within that of a study for runs that show what cells cost."""

WRITTEN_LAST = (RESULTS, REPORT)
"""Files that a run has when it is over."""


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study.

    Attributes:
        path: The folder.
        config: The study.
        cells: Its cells, also those that were dropped.
        former: Cells that the study had before its file was changed.
        code: The hash of each file of the installed code, by distribution; with it, finished
            cells of other code are stale.
    """

    path: Path
    config: StudyConfig
    cells: Sequence[Cell]
    former: Sequence[Cell] = ()
    code: Mapping[str, Mapping[str, str]] | None = None

    @classmethod
    def read(cls, path: Path, code: Mapping[str, Mapping[str, str]] | None = None) -> StudyFolder:
        """Read a folder that `write` has written.

        Args:
            path: The folder.
            code: The hashes of the installed code, by which cells of older code are found.

        Raises:
            ConfigError: It is not the folder of a study.
        """
        try:
            content = json.loads((path / CELLS).read_text())
            listed = [(Cell(**each), current) for each, current in content["cells"]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{path} is not the folder of a study ({error}); `gkd study run` makes one"
            ) from error
        current = tuple(cell for cell, is_current in listed if is_current)
        former = tuple(cell for cell, is_current in listed if not is_current)
        return cls(path, read_study(path / STUDY), current, former, code)

    def write_configs(self, configs: Mapping[str, str]) -> None:
        """Write the configurations of cells.

        Args:
            configs: The configuration of each cell by its name, as TOML.
        """
        for name, config in configs.items():
            write_file(self.config_file(name), config)

    def write(self) -> None:
        """Write the study and the list of its cells, whose configurations are there."""
        given = self.config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        write_file(self.path / STUDY, tomli_w.dumps(given))
        listed = [
            *((cell.to_json(), True) for cell in self.cells),
            *((cell.to_json(), False) for cell in self.former),
        ]
        write_file(self.path / CELLS, json_text({"cells": listed}, indent=1))

    def state(self, cell: Cell) -> CellState:
        """Return the state of a cell."""
        if cell.reason:
            return CellState.DROPPED
        if self.holder(cell) is not None:
            return CellState.RUNNING
        if self.is_over(cell):
            return CellState.STALE if self.is_of_other_code(cell) else CellState.FINISHED
        attempt = self.attempt(cell)
        if attempt is None or attempt.may_go_on:
            return CellState.WAITING
        return CellState.FAILED

    def run_directory(self, cell: Cell) -> Path:
        """Return the directory of a cell's run."""
        return self.path / "cells" / cell.name

    def config_file(self, name: str) -> Path:
        """Return the file with the configuration of the cell of this name."""
        return self.path / "configs" / f"{name}.toml"

    def attempt_file(self, cell: Cell) -> Path:
        """Return the file that says how a cell went; who holds its lease runs the cell."""
        return self.path / ATTEMPTS / f"{cell.name}.json"

    def log_file(self, cell: Cell) -> Path:
        """Return the file with what a cell has printed the last time."""
        return self.attempt_file(cell).with_suffix(".log")

    def holder(self, cell: Cell) -> Holder | None:
        """Return the process that runs a cell, if one does."""
        return holder(self.attempt_file(cell))

    def attempt(self, cell: Cell) -> Attempt | None:
        """Return the attempts of a cell; None if it was never started."""
        return Attempt.load(self.attempt_file(cell))

    def failure(self, cell: Cell) -> str:
        """Return the end of the error of a cell that failed, else an empty string."""
        attempt = self.attempt(cell)
        failed = attempt is not None and self.state(cell) is CellState.FAILED
        return attempt.error if attempt is not None and failed else ""

    def version(self, cell: Cell) -> str:
        """Return the version of gkd that trained a finished cell; empty if that is unknown."""
        found = {inputs.get(VERSIONS, {}).get(CORE, "") for inputs in self._inputs(cell)}
        return ", ".join(sorted(filter(None, found)))

    def is_of_other_code(self, cell: Cell) -> bool:
        """Return whether code other than the installed trained or began a stage of a cell.

        Args:
            cell: The cell.
        """
        if self.code is None:
            return False
        return any(
            self.code.get(distribution, {}).get(file) != content
            for inputs in self._inputs(cell)
            for distribution, files in inputs.get(CODE, {}).items()
            for file, content in files.items()
        )

    def is_over(self, cell: Cell) -> bool:
        """Return whether a cell is finished, with any code."""
        directory = self.run_directory(cell)
        return all((directory / name).exists() for name in WRITTEN_LAST)

    def _inputs(self, cell: Cell) -> list[Inputs]:
        """Return the inputs that determine the student of each stage that a cell has begun."""
        found = sorted((self.run_directory(cell) / STAGES).rglob(MANIFEST))
        return [_inputs_of(path) for path in found]


def _inputs_of(path: Path) -> Inputs:
    """Return the inputs in a manifest; those of a damaged one count as of other code."""
    try:
        return Manifest.load(path).inputs
    except ConfigError:
        return {CODE: {"": {path.name: "damaged"}}}
