"""The cells that a study asks for, before anything is known about their runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from gkd_core import digest
from gkd_core.studies.study_config import CROSSED, SEED, TASK, AxisValue, StudyConfig

ALL = "*"
"""Among the values of an axis: everything that is installed."""

Settings: TypeAlias = Mapping[str, tuple[Any, str]]
"""Settings of a run by key, each with where it is from."""


@dataclass(frozen=True)
class AxisPoint:
    """A value for each axis.

    Attributes:
        axes: The value on each axis but seed and task.
        task: The task; None without such an axis.
        seed: The seed.
        reason: The reason of the constraint that drops it; empty if none does.
    """

    axes: Mapping[str, AxisValue]
    task: AxisValue | None
    seed: int
    reason: str = ""

    @property
    def group(self) -> str:
        """A hash of what it shares with points that differ by seed only."""
        return digest.of_value([dict(self.axes), self.task])

    @property
    def values(self) -> dict[str, AxisValue]:
        """The value on each axis."""
        crossed = {} if self.task is None else {TASK: self.task}
        return {**self.axes, **crossed, SEED: self.seed}

    def with_seed(self, seed: int) -> AxisPoint:
        """Return the same with another seed."""
        return replace(self, seed=seed)

    def with_value(self, axis: str, value: AxisValue) -> AxisPoint:
        """Return the same with another value on an axis."""
        return replace(self, axes={**self.axes, axis: value}, reason="")

    def settings(self, config: StudyConfig) -> dict[str, tuple[Any, str]]:
        """Return its settings; of an axis that sets what another one sets, the later counts.

        Args:
            config: The study.
        """
        # A cell that learns from labels alone serves all others as their baseline.
        found: dict[str, tuple[Any, str]] = {"baseline": (False, "every study")}
        found |= {key: (value, "[settings]") for key, value in config.settings.items()}
        for axis, value in self.values.items():
            for key, setting in config.settings_of(axis, value).items():
                found.pop(key, None)
                found[key] = (setting, f"axis {axis}")
        return found


def axis_points(config: StudyConfig, installed: Mapping[str, Sequence[str]]) -> list[AxisPoint]:
    """Return all points of a study, for each task and seed, also those that constraints drop.

    Args:
        config: The study.
        installed: What `*` among the values of an axis stands for, by axis.
    """
    axes = {axis: _named(values, installed.get(axis, ())) for axis, values in config.axes.items()}
    found = [
        AxisPoint(values, task, seed)
        for values in _designed(config, axes)
        for task in axes.get(TASK, [None])
        for seed in config.seeds
    ]
    return [replace(each, reason=_reason(each, config)) for each in found]


def _named(values: Sequence[AxisValue], installed: Sequence[str]) -> list[Any]:
    """Return the values of an axis, with names instead of `*`."""
    given = [value for value in values if value != ALL]
    return [*given, *(name for name in installed if ALL in values and name not in given)]


def _designed(
    config: StudyConfig, axes: Mapping[str, Sequence[AxisValue]]
) -> Iterator[Mapping[str, AxisValue]]:
    own = {axis: values for axis, values in axes.items() if axis not in CROSSED}
    if config.design == "list":
        # A search lists a student once for each seed that it was trained with.
        yield from {digest.of_value(cell): cell for cell in config.cells}.values()
    elif config.design == "grid":
        for values in itertools.product(*own.values()):
            yield dict(zip(own, values, strict=True))
    else:
        yield config.center
        for axis, choices in own.items():
            for value in choices:
                if value != config.center[axis]:
                    yield config.center | {axis: value}


def _reason(point: AxisPoint, config: StudyConfig) -> str:
    holding = (c.reason for c in config.constraints if c.holds(point.values))
    return next(holding, "")
