"""`SearchSpace`: what candidates of a search may be like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gkd_core.config.resolve import ONLY_STAGE, path_in
from gkd_core.kinds.metrics import Metric
from gkd_core.runs.default_method import LABELS
from gkd_core.studies.shapes import MeasuredShape
from gkd_core.studies.study_config import METHOD, AxisValue, StudyConfig

SHAPE = "shape"
INIT = "student.init"
RATE = "training.lr"
EVERY = "training.evaluate_every"

METHODS = ("pkd+soft+hard", "kd", LABELS)
"""Methods that are tried if none is named."""

UNLABELED = ("pkd+soft", "soft")
"""The same, where the rows have no labels."""

INITS = ("spaced", "first", "last")
EVALUATIONS = 4
"""Evaluations of a run, at each of which it may be stopped."""

SPREAD = 4.0
"""The learning rate is searched from a quarter to four times that of the settings."""


@dataclass(frozen=True)
class SearchedRecipe:
    """A recipe with which candidates are made.

    Attributes:
        name: Its name.
        steps: Steps of each of its stages, by name, in order.
        slices: Whether its students are slices of the teacher.
    """

    name: str
    steps: Mapping[str, int]
    slices: bool = False

    def __str__(self) -> str:
        return f"recipe {self.name}"

    @property
    def last_stage(self) -> str:
        """The stage that ends with the student."""
        return list(self.steps)[-1]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a run with it."""
        every = {path_in(stage, EVERY): steps_between(n) for stage, n in self.steps.items()}
        return {"recipe": self.name, **every}


def steps_between(steps: int) -> int:
    """Return the steps from one evaluation to the next of a stage with this many steps."""
    return max(1, math.ceil(steps / EVALUATIONS))


@dataclass(frozen=True)
class SearchSpace:
    """The space of a search's candidates.

    Attributes:
        shapes: Shapes of students, with their costs; also those that miss the budget.
        methods: Methods.
        recipes: Recipes.
        settings: Settings of `gkd run` that all candidates share.
        metric: The metric on validation rows.
        rate: The learning rate around which others are tried.
        steps: Steps of a run.
        floor: The metric from which on only latency counts; None if quality always does.
        teacher_milliseconds: Median time of the teacher for one sample.
        seed: The seed of candidates.
    """

    shapes: Sequence[MeasuredShape]
    methods: Sequence[str]
    recipes: Sequence[SearchedRecipe]
    settings: Mapping[str, Any]
    metric: Metric
    rate: float
    steps: int
    floor: float | None
    teacher_milliseconds: float
    seed: int = 1

    @property
    def fitting(self) -> Sequence[MeasuredShape]:
        """The shapes within the budget."""
        return [each for each in self.shapes if not each.reason]

    @property
    def evaluations(self) -> int:
        """Evaluations of a whole run."""
        return math.ceil(self.steps / steps_between(self.steps))

    @property
    def choices(self) -> dict[str, dict[str, list[AxisValue]]]:
        """For each method and recipe, the values of axes to choose from, by axis."""
        return {
            method: {
                SHAPE: [str(each.shape) for each in self.shapes_of(method)],
                METHOD: [method],
                INIT: [*INITS],
            }
            for method in [*self.methods, *map(str, self.recipes)]
        }

    @property
    def rates(self) -> dict[str, tuple[float, float]]:
        """The smallest and the largest learning rate."""
        return {RATE: (self.rate / SPREAD, self.rate * SPREAD)}

    @property
    def beginnings(self) -> list[Mapping[str, AxisValue]]:
        """The candidates to begin with, as values by axis: what a person would try.

        They are the largest student within the budget, by each method, with the rate of the
        settings.
        """
        largest = {
            method: max(self.shapes_of(method), key=lambda each: each.weights)
            for method in self.choices
        }
        return [
            {SHAPE: str(each.shape), METHOD: method, INIT: INITS[0], RATE: self.rate}
            for method, each in largest.items()
        ]

    def shapes_of(self, method: str) -> Sequence[MeasuredShape]:
        """Return the shapes within the budget that students of a method have.

        Args:
            method: A method, or a recipe as text.
        """
        slices = any(str(recipe) == method and recipe.slices for recipe in self.recipes)
        return [each for each in self.fitting if (each.shape.scale is not None) == slices]

    def shape(self, axes: Mapping[str, AxisValue]) -> MeasuredShape:
        """Return the shape of a candidate.

        Args:
            axes: Its value on each axis.
        """
        return next(each for each in self.shapes if str(each.shape) == axes[SHAPE])

    def stage(self, axes: Mapping[str, AxisValue]) -> str:
        """Return the stage that ends with the student.

        Args:
            axes: The value of a candidate on each axis.
        """
        last = {str(recipe): recipe.last_stage for recipe in self.recipes}
        return last.get(str(axes[METHOD]), ONLY_STAGE)

    def worth(self, axes: Mapping[str, AxisValue], value: float) -> float:
        """Return the quality of a candidate, in the unit of the metric.

        It is its quality; from the floor on, more the faster it is.

        Args:
            axes: Its value on each axis.
            value: Its metric on validation rows.
        """
        if self.floor is None or value < self.floor:
            return value
        time = self.shape(axes).milliseconds or 0.0
        return self.floor * (2 - time / self.teacher_milliseconds)

    def study(self, cells: Sequence[Mapping[str, AxisValue]]) -> StudyConfig:
        """Return a search as a study.

        Args:
            cells: The candidates so far, as their values on the axes; without any, the first one
                that is possible stands for them.
        """
        return StudyConfig(
            title="Search for a student",
            design="list",
            cells=[dict(cell) for cell in cells or self.beginnings[:1]],
            values={
                SHAPE: {str(each.shape): dict(each.shape.settings) for each in self.shapes},
                METHOD: {str(recipe): recipe.settings for recipe in self.recipes},
            },
            settings={**self.settings, EVERY: steps_between(self.steps)},
        )
