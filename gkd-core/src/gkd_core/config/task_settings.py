"""The settings of a stage that come from its task: defaults, and what it changes in a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gkd_core.config.formats import dotted
from gkd_core.config.overlay import Values, merge, nested
from gkd_core.config.problems import origins
from gkd_core.config.schema import TaskConfig, task_name
from gkd_core.config.settings import Level, Origin, Setting, read_table
from gkd_core.errors import ConfigError

TaskDefaults = Callable[[str, Any], Mapping[str, Any]]
"""Returns the default settings of a task, given its name and `task.kind` as written."""

TaskAdjustments = Callable[[str, str, str, Mapping[str, Any]], Mapping[str, Any]]
"""Returns what a task changes in a stage of a recipe, given the names of task, recipe and stage,
and the stage's settings, all as nested tables."""


@dataclass(frozen=True)
class Adjustment:
    """A setting of a recipe that the task changes.

    Attributes:
        setting: The task's setting.
        instead_of: The value of the recipe; None if it leaves the setting open.
    """

    setting: Setting
    instead_of: Any

    def __str__(self) -> str:
        before = "" if self.instead_of is None else f" instead of {json.dumps(self.instead_of)}"
        return f"{dotted(self.setting.key)} = {json.dumps(self.setting.value)}{before}"


@dataclass(frozen=True)
class TaskSettings:
    """The settings that come from tasks.

    Attributes:
        defaults: Returns the default settings of a task.
        adjustments: Returns what a task changes in a recipe.
        recipe: The recipe that tasks may adjust.
    """

    defaults: TaskDefaults | None = None
    adjustments: TaskAdjustments | None = None
    recipe: str | None = None

    def merge(self, settings: list[Setting], problems: list[str]) -> Values:
        """Merge settings in order, on top of the defaults of their task."""
        below: list[Setting] = []
        if self.defaults is not None:
            name, kind, given = _task_of(settings)
            try:
                table = self.defaults(name, kind)
                below = read_table(table, Origin(Level.TASK, f"task {name}"))
            except ConfigError as error:
                problems.append(f"task.name{origins(given)}: {error}")
        return merge([*below, *settings], problems)

    def adjust(self, values: Values, stage: str | None) -> list[Setting]:
        """Return the task's changes of a stage; none if there is no task or no recipe."""
        if self.adjustments is None or self.recipe is None or stage is None:
            return []
        name, _, _ = _task_of(values.values())
        try:
            table = self.adjustments(name, self.recipe, stage, nested(values))
        except ConfigError:
            return []  # `merge` says that there is no such task
        origin = Origin(Level.ADJUSTMENT, f"task {name} for recipe {self.recipe}")
        return [s for s in read_table(table, origin) if value_of(values, s) != s.value]


def adjusted_recipe(recipe: str | None, run: list[Setting]) -> str | None:
    """Return the recipe that tasks may adjust, if there is one."""
    paper = [setting.value for setting in run if setting.key == ("paper_values",)]
    return None if paper and paper[-1] else recipe


def value_of(values: Values, setting: Setting) -> Any:
    """Return the value that a setting has so far; None if it has none."""
    return values[setting.key].value if setting.key in values else None


def _task_of(settings: Iterable[Setting]) -> tuple[str, Any, list[Setting]]:
    """Return the name of the task that settings choose, the kind as written, and who names it."""
    given = {setting.key[1:]: setting for setting in settings if setting.key[0] == "task"}
    named = {name: given[(name,)] for name in ("name", "train", "kind") if (name,) in given}
    texts = {n: str(s.value) for n, s in named.items() if n != "kind" and s.value is not None}
    kind = named["kind"].value if "kind" in named else None
    return task_name(TaskConfig(**texts)), kind, [named["name"]] if "name" in named else []
