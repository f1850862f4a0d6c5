"""`Cell`: one run of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from gkd_core.studies.study_config import AxisValue

Role = Literal["report", "tuning"]


class CellState(StrEnum):
    """What has become of a cell."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STALE = "stale"
    DROPPED = "dropped"


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        name: The fingerprint of its configuration, which names its directory.
        axes: Its value on each axis but seed and task.
        seed: The seed.
        task: What the study calls the task.
        role: Whether it is reported, or serves to tune a setting of other cells.
        reason: Why it is dropped; empty if it is not.
    """

    name: str
    axes: Mapping[str, AxisValue]
    seed: int
    task: str
    role: Role = "report"
    reason: str = ""

    @property
    def label(self) -> str:
        """Its values as people read them, as in `method=kd, seed=1`."""
        return ", ".join(f"{axis}={value}" for axis, value in self.coordinates.items())

    @property
    def coordinates(self) -> dict[str, AxisValue]:
        """Its value on each axis, with task and seed."""
        return {**self.axes, "task": self.task, "seed": self.seed}

    def to_json(self) -> dict[str, Any]:
        """Return the cell as JSON can hold it."""
        return asdict(self)
