"""`PredictedTime`: what cells have taken, and what `gkd study plan` has predicted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from gkd_core.atomic import write_file
from gkd_core.lease import hold
from gkd_core.strict_json import json_text
from gkd_core.studies.cell import Cell, CellState
from gkd_core.studies.study_folder import TIMING, StudyFolder

FORECAST = "forecast.json"

Seconds = Mapping[float, float]
"""The duration of a cell by the share of the steps that it is trained for."""

Forecast = Mapping[str, Mapping[str, float]]
"""The durations of cells by group, as JSON can hold them."""


@dataclass(frozen=True)
class PredictedTime:
    """The time that cells have taken, and the one that was predicted.

    Attributes:
        cells: Number of finished cells for which there is a prediction, and which ran in one go.
        predicted: Their predicted seconds.
        measured: Their seconds.
    """

    cells: int
    predicted: float
    measured: float

    @classmethod
    def of(cls, folder: StudyFolder) -> PredictedTime | None:
        """Return the times of the cells of a study; None if none was predicted and is over.

        Args:
            folder: The folder of the study.
        """
        pairs = list(_pairs(folder, _forecast(folder)))
        if not pairs:
            return None
        return cls(len(pairs), sum(p for p, _ in pairs), sum(m for _, m in pairs))

    @property
    def factor(self) -> float:
        """The measured time, divided by the predicted one."""
        return self.measured / self.predicted

    def __str__(self) -> str:
        predicted, measured = (timedelta(seconds=round(s)) for s in (self.predicted, self.measured))
        cells = f"{self.cells} cell{'' if self.cells == 1 else 's'}"
        return (
            f"time of {cells}, one after the other: {measured}; predicted: {predicted} "
            f"(factor {self.factor:.2f})"
        )


def save_forecast(folder: StudyFolder, seconds: Iterable[tuple[str, Seconds]]) -> None:
    """Keep what cells are predicted to take, besides what was kept of others.

    Args:
        folder: The folder of the study.
        seconds: The duration of a cell, with the group that it belongs to.
    """
    content = {group: {str(share): s for share, s in each.items()} for group, each in seconds}
    with hold(_path(folder), wait=True):
        write_file(_path(folder), json_text({**_forecast(folder), **content}, indent=1))


def _path(folder: StudyFolder) -> Path:
    return folder.path / TIMING / FORECAST


def _forecast(folder: StudyFolder) -> Forecast:
    """Return the stored prediction; nothing if there is none."""
    path = _path(folder)
    found: Forecast = json.loads(path.read_text()) if path.exists() else {}
    return found


def _pairs(folder: StudyFolder, known: Forecast) -> Iterator[tuple[float, float]]:
    """Yield what was predicted for a finished cell, and what it took."""
    for cell in folder.cells:
        predicted = known.get(cell.group, {}).get(str(float(cell.share)))
        measured = _measured(folder, cell)
        if predicted is not None and measured is not None:
            yield predicted, measured


def _measured(folder: StudyFolder, cell: Cell) -> float | None:
    """Return the seconds of a finished cell; None if it was stopped in between."""
    attempt = folder.attempt(cell)
    if folder.state(cell) is not CellState.FINISHED or attempt is None or attempt.count > 1:
        return None
    return attempt.seconds
