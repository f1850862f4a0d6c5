"""`Cell`: one run of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from gkd_core import digest
from gkd_core.studies.study_config import AxisValue

Role = Literal["report", "tuning"]


class CellState(StrEnum):
    """The state of a cell."""

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
        lr_factor: Factor of its learning rates: the one that is tried, or that was chosen.
        share: Share of the steps of a reported cell that it is trained for.
    """

    name: str
    axes: Mapping[str, AxisValue]
    seed: int
    task: str
    role: Role = "report"
    reason: str = ""
    lr_factor: float = 1.0
    share: float = 1.0

    @property
    def label(self) -> str:
        """Its values as people read them, as in `method=kd, seed=1`."""
        values = self.coordinates
        if self.role == "tuning":
            values |= {"lr_factor": self.lr_factor, "share": self.share}
        return ", ".join(f"{axis}={value}" for axis, value in values.items() if value != "")

    @property
    def coordinates(self) -> dict[str, AxisValue]:
        """Its value on each axis, with task and seed."""
        return {**self.axes, "task": self.task, "seed": self.seed}

    @property
    def group(self) -> str:
        """A hash of what it shares with cells that differ by seed, or serve to tune it."""
        return digest.of_value([dict(self.axes), self.task])

    def to_json(self) -> dict[str, Any]:
        """Return the cell as JSON can hold it."""
        return asdict(self)
