"""`StudyConfig`: what a study file says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gkd_core.config.formats import READERS
from gkd_core.errors import ConfigError

AxisValue = str | int | float | bool
"""A value of an axis: that of a setting, or a name for several settings."""

SEED = "seed"
TASK = "task"
CROSSED = (TASK, SEED)
"""Axes along which every cell is repeated, whatever the design."""

METHOD = "method"
"""The axis whose values are sums of methods."""

DEPTH = "student.layers"

Design = Literal["grid", "one-factor-at-a-time", "list"]
Keep = Literal["best", "all", "none"]


class StudyTable(BaseModel):
    """A frozen table of a study file that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Constraint(StudyTable):
    """Cells to leave out, and the reason."""

    when: dict[str, AxisValue | list[AxisValue]] = Field(
        min_length=1,
        description="Values of axes, or lists of values; a cell that has one of each is dropped.",
    )
    reason: str = Field(description="The reason, as it is shown.")

    def holds(self, axes: Mapping[str, AxisValue]) -> bool:
        """Return whether it drops a cell.

        Args:
            axes: The value of the cell on each axis.
        """
        return all(
            axis in axes and axes[axis] in (value if isinstance(value, list) else [value])
            for axis, value in self.when.items()
        )


class TuneConfig(StudyTable):
    """How the learning rate of each cell is chosen, on validation rows, before cells are run.

    Halving: all factors are tried for a part of the steps, and the better half for twice as many,
    until one is left.
    """

    lr_factors: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        min_length=2,
        description="Factors to try, of the learning rates of all stages.",
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        1000, description="The seed to try them with; it cannot be among those of the cells."
    )

    @model_validator(mode="after")
    def _differs(self) -> TuneConfig:
        if len(set(self.lr_factors)) < len(self.lr_factors):
            raise ValueError(f"lr_factors needs values that all differ, got {self.lr_factors}")
        return self

    @property
    def shares(self) -> list[float]:
        """The share of the steps in each rung, as in 1/4, 1/2 for three or four factors."""
        rungs = math.ceil(math.log2(len(self.lr_factors)))
        return [2.0 ** (rung - rungs) for rung in range(rungs)]


class StudyConfig(StudyTable):
    """A study: the axes, how cells are made of them, and the settings that all cells share."""

    title: str = Field("", description="Title of the report.")
    description: str = Field("", description="The question that the study answers.")
    design: Design = Field(
        "grid",
        description="`grid`: every combination; `one-factor-at-a-time`: the baseline, and every "
        "cell that differs from it on one axis; `list`: those in `cells`.",
    )
    axes: dict[str, list[AxisValue]] = Field(
        {},
        description="Values by axis. An axis is a configuration key, such as method or "
        "training.lr, or a name whose values stand in `values`. Every cell is repeated for each "
        "`seed` and each `task`.",
    )
    values: dict[str, dict[str, dict[str, Any]]] = Field(
        {},
        description="Settings of named values, by axis and name: [values.knowledge.attention].",
    )
    cells: list[dict[str, AxisValue]] = Field(
        [], description="The cells of a `list`, each as its values on the axes that it names."
    )
    baseline: dict[str, AxisValue] = Field(
        {},
        description="The cell that others are compared with, as the value on each axis. Default: "
        "the first value of each.",
    )
    equal_size: str | None = Field(
        None,
        description="An axis of depths, such as student.layers: students of other depths than the "
        "baseline's are made wider or thinner, so that they have as many weights. Default: none.",
    )
    constraints: list[Constraint] = Field([], description="Cells to drop, with a reason.")
    settings: dict[str, Any] = Field({}, description="Settings of `gkd run` for all cells.")
    tune: TuneConfig | None = Field(
        None, description="Tune the learning rate of each cell, for all its seeds. Default: no."
    )
    keep: Keep = Field(
        "best",
        description="Which students to keep on disk: the best of each task on validation rows, "
        "all, or none. Predictions are always kept.",
    )

    @field_validator("axes", mode="before")
    @classmethod
    def _dotted_axes(cls, axes: Any) -> Any:
        """Take `axes.training.lr = [...]` for the axis `training.lr`."""
        return flat(axes) if isinstance(axes, dict) else axes

    @field_validator("settings")
    @classmethod
    def _dotted_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Hold each setting under one key, however its table is written."""
        return flat(settings)

    @model_validator(mode="after")
    def _is_whole(self) -> StudyConfig:
        for axis, values in self.axes.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"axes.{axis} needs values that all differ, got {values}")
        if any(type(seed) is not int for seed in self.seeds):
            raise ValueError(f"axes.seed needs whole numbers, got {self.axes[SEED]}")
        if (self.design == "list") != bool(self.cells):
            raise ValueError("`cells` and design = 'list' belong together")
        crossed = [axis for axis in self.axes if axis not in CROSSED]
        if self.design == "list" and crossed:
            raise ValueError(f"axes.{crossed[0]} has no effect on a list; name it in `cells`")
        if self.tune is not None and self.tune.seed in self.seeds:
            raise ValueError(
                f"tune.seed = {self.tune.seed} is among the seeds of the cells: what is chosen by "
                "a seed cannot be judged by it. Choose another"
            )
        self._refuse_unknown_axes()
        self._refuse_equal_size_of_no_depth()
        return self

    def _refuse_equal_size_of_no_depth(self) -> None:
        axis = self.equal_size
        values = self.axes.get(axis, []) if axis is not None else []
        if any(DEPTH not in self.settings_of(str(axis), value) for value in values):
            raise ValueError(f"equal_size = {axis!r} is no axis of depths: it does not set {DEPTH}")

    def _refuse_unknown_axes(self) -> None:
        known = {*self.axes, *(axis for cell in self.cells for axis in cell)}
        named: dict[str, Mapping[str, Any]] = {"values": self.values, "baseline": self.baseline}
        if self.equal_size is not None:
            named["equal_size"] = {self.equal_size: None}
        named |= {f"constraints.{i}.when": c.when for i, c in enumerate(self.constraints)}
        for place, axes in named.items():
            for axis in axes:
                if axis not in known:
                    raise ValueError(f"{place} names the axis {axis!r}, which `axes` does not have")

    @property
    def seeds(self) -> list[Any]:
        """The seeds with which every cell is repeated."""
        return self.axes.get(SEED, [1])

    @property
    def center(self) -> dict[str, AxisValue]:
        """The baseline, with a value for each axis but seed and task."""
        first = {axis: values[0] for axis, values in self.axes.items() if axis not in CROSSED}
        return first | self.baseline

    def settings_of(self, axis: str, value: AxisValue) -> dict[str, Any]:
        """Return the settings that a value of an axis stands for, by key."""
        named = self.values.get(axis, {}).get(str(value))
        if named is not None:
            return flat(named)
        return {"task.name" if axis == TASK else axis: value}


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the values of nested tables by dotted key; lists of tables are values.

    Args:
        tree: The tables.
        above: Key of the table that they are in, with a dot at its end.
    """
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{above}{name}"
        inner = flat(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
        found |= inner
    return found


def read_study(path: Path) -> StudyConfig:
    """Read a study file.

    Raises:
        ConfigError: It cannot be read, or a value is wrong; the message lists all problems.
    """
    try:
        reader = READERS[path.suffix.lower()]
        tree, _ = reader(path.read_text(encoding="utf-8-sig"), str(path))
    except KeyError as error:
        raise ConfigError(
            f"{path}: the name of a study file ends in {', '.join(READERS)}"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the study file: {error.strerror}") from error
    return parse_study(tree, str(path))


def parse_study(tree: Any, source: str) -> StudyConfig:
    """Return the study of a parsed file.

    Args:
        tree: What the file holds.
        source: Its name in messages.

    Raises:
        ConfigError: A value is wrong; the message lists all problems.
    """
    try:
        return StudyConfig.model_validate(tree)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, each['loc'])) or 'the study'}: {each['msg']}"
            for each in error.errors()
        ]
        raise ConfigError("\n  ".join([f"{source} is no study:", *problems])) from error
