"""The cells of a study: points whose configuration is complete and checked."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from gkd_core import digest
from gkd_core.config.expression import parse_expression
from gkd_core.config.render import to_toml
from gkd_core.config.resolve import Resolved, ResolvedStage
from gkd_core.config.schema import RunConfig, task_name
from gkd_core.config.settings import Level, Origin
from gkd_core.contract.task import SPLITS
from gkd_core.errors import GkdError
from gkd_core.models.content import ModelContents
from gkd_core.named_path import named_path
from gkd_core.plugins import Registry
from gkd_core.runs.resolved import resolve_run
from gkd_core.runs.run import prepare_run
from gkd_core.studies.cell import Cell
from gkd_core.studies.design import AxisPoint, Settings
from gkd_core.studies.equal_size import equal_width
from gkd_core.studies.study_config import StudyConfig
from gkd_core.training.augmentation import copies
from gkd_core.training.stage_spec import StageSpec

NOT_NAMED: dict[str, Any] = {
    **dict.fromkeys(("output", "tracking", "parallel", "stages", "recipe"), True),
    "teachers": {"__all__": {"keep"}},
}
"""Settings that do not tell one cell from another."""

FREE: dict[str, Any] = {
    "method": True,
    "student": {"init": True},
    "training": dict.fromkeys(
        [
            *("lr", "lr_schedule", "lr_floor", "lr_decay_share", "lr_power", "warmup"),
            *("weight_decay", "beta1", "beta2", "eps", "epochs"),
        ],
        True,
    ),
}
"""Settings that make a step neither slower nor larger; of a method, its weights are among them."""

TIMED = 3
"""Steps that are timed, after a first one that is slower."""

MODELS = ("model", "augment_model")
"""Settings that name a place; its content names the cell."""


Configured = TypeVar("Configured", Resolved, ResolvedStage)


@dataclass(frozen=True)
class CheckedCell:
    """A cell, and the configuration of its run.

    Attributes:
        cell: The cell.
        resolved: The configuration; None of a cell that is dropped.
    """

    cell: Cell
    resolved: Resolved | None


@dataclass(frozen=True)
class Prepared:
    """The facts about a run before it begins.

    Attributes:
        specs: Its stages; empty if gkd refuses it.
        refusal: Why gkd refuses it; empty if it does not.
    """

    specs: tuple[StageSpec, ...] = ()
    refusal: str = ""


class CellMaker:
    """Makes the cells of a study; what several share is read once.

    Args:
        config: The study.
        registry: The plugins.
        known: Cells that were found valid before.
    """

    def __init__(self, config: StudyConfig, registry: Registry, known: Iterable[Cell]) -> None:
        self._config = config
        self._registry = registry
        self._known = {cell.name: cell.role for cell in known}
        self._contents = ModelContents()
        self._prepared: dict[str, Prepared] = {}

    def make(self, point: AxisPoint, lr_factor: float = 1.0) -> CheckedCell:
        """Return a cell that is reported; one that gkd refuses is dropped, with its message.

        Args:
            point: Its value on each axis.
            lr_factor: The factor of its learning rates.
        """
        if point.reason:
            return self._dropped(point, point.reason)
        try:
            settings = self._settings(point)
            resolved = self._faster(settings, resolve_run(flags=settings), lr_factor)
        except GkdError as error:
            return self._dropped(point, str(error))
        cell = self._cell(point, resolved, lr_factor)
        if self._known.get(cell.name) == "tuning":  # its run has left the test rows alone
            cell = replace(cell, name=digest.of_value([cell.name, cell.role]))
        if cell.name not in self._known and (refusal := self.prepare(point).refusal):
            return self._dropped(point, refusal, cell.task)
        return CheckedCell(cell, _with_shared_answers(resolved))

    def make_trial(self, point: AxisPoint, lr_factor: float, share: float) -> CheckedCell:
        """Return a cell that tries a factor of the learning rates.

        It leaves the test rows alone. Its name does not tell: the value on validation rows, by
        which it is chosen, is the same.

        Args:
            point: Its value on each axis, which is not refused.
            lr_factor: The factor.
            share: The share of the steps that it is trained for.
        """
        shorter = {
            spec.settings.path("training.steps"): (math.ceil(share * total_steps(spec)), "tune")
            for spec in self.prepare(point).specs
        }
        settings = self._settings(point) | shorter | {"output.compare_on": ("validation", "tune")}
        resolved = self._faster(settings, resolve_run(flags=settings), lr_factor)
        cell = self._cell(point, resolved, lr_factor)
        trial = replace(cell, role="tuning", share=share)
        return CheckedCell(trial, _with_shared_answers(resolved))

    def make_timing(self, point: AxisPoint) -> CheckedCell:
        """Return a short run that shows what a point costs, and all that cost the same.

        Args:
            point: Its value on each axis, which is not refused.
        """
        settings = self._settings(point)
        own = {name: "training." + name for name in ("steps", "log_every", "evaluate_every", "lr")}
        values = {"steps": TIMED + 1, "log_every": 1, "evaluate_every": TIMED + 1, "lr": 1e-5}
        short = {
            spec.settings.path(own[name]): (value, "timing")
            for spec in self.prepare(point).specs
            for name, value in values.items()
        }
        alone = {"seed": (1, "timing"), "output.reuse": (False, "timing")}
        resolved = resolve_run(flags=settings | alone | short)
        cell = self._cell(point, resolved, 1.0)
        timing = replace(cell, seed=1, name=self._cost_name(resolved))
        return CheckedCell(timing, _with_shared_answers(resolved))

    def prepare(self, point: AxisPoint) -> Prepared:
        """Return the facts about the run of a point, whatever its seed."""
        if point.group not in self._prepared:
            self._prepared[point.group] = self._prepare(point)
        return self._prepared[point.group]

    def _prepare(self, point: AxisPoint) -> Prepared:
        if point.reason:
            return Prepared(refusal=point.reason)
        try:
            resolved = resolve_run(flags=self._settings(point))
            names = {stage.name for stage in resolved.stages}
            specs = prepare_run(resolved, self._registry)
        except GkdError as error:
            return Prepared(refusal=str(error))
        return Prepared(tuple(spec for spec in specs if spec.name in names))

    def _settings(self, point: AxisPoint) -> dict[str, tuple[Any, str]]:
        """Return the settings of a point, with the width that makes sizes equal."""
        settings, axis = point.settings(self._config), self._config.equal_size
        if axis is None or point.axes.get(axis) == (center := self._config.center[axis]):
            return settings
        alike = self.prepare(point.with_value(axis, center))
        if not alike.specs:
            return settings
        layers = resolve_run(flags=settings).stages[0].config.student.layers
        width = equal_width(alike.specs[0], layers)
        return settings | {key: (value, "equal_size") for key, value in width.items()}

    def _faster(self, settings: Settings, resolved: Resolved, lr_factor: float) -> Resolved:
        """Return a configuration with the learning rate of each stage multiplied."""
        if lr_factor == 1:
            return resolved
        key = "training.lr"
        rates = {
            stage.path(key): (stage.config.training.lr * lr_factor, "tune")
            for stage in resolved.stages
        }
        return resolve_run(flags={k: v for k, v in settings.items() if k != key} | rates)

    def _cell(self, point: AxisPoint, resolved: Resolved, lr_factor: float) -> Cell:
        task = point.task or task_name(resolved.stages[-1].config.task)
        return Cell(
            self._fingerprint(resolved),
            point.axes,
            point.seed,
            str(task),
            lr_factor=lr_factor,
        )

    def _dropped(self, point: AxisPoint, reason: str, task: str = "") -> CheckedCell:
        task, seed = task or str(point.task or ""), point.seed
        name = digest.of_value([point.group, seed])
        return CheckedCell(Cell(name, point.axes, seed, task, reason=reason), None)

    def _fingerprint(self, resolved: Resolved) -> str:
        """Return the hash of what a configuration says otherwise than the defaults.

        New settings of a later version leave it as it is. Of files, the content counts.
        """
        return digest.of_value(self._content(_trees(resolved, NOT_NAMED)))

    def _cost_name(self, resolved: Resolved) -> str:
        """Return the hash of what makes a short run as dear as it is."""
        methods = [_methods(stage.config.method) for stage in resolved.stages]
        tree = self._content(_trees(resolved, NOT_NAMED | FREE))
        return digest.of_value([methods, tree])

    def _content(self, tree: Any, key: str = "") -> Any:
        """Return a tree of settings, with the content of files instead of their names."""
        if isinstance(tree, Mapping):
            return {name: self._content(inner, name) for name, inner in tree.items()}
        if isinstance(tree, (list, tuple)):
            return [self._content(inner, key) for inner in tree]
        if isinstance(tree, str) and key in (*MODELS, *SPLITS):
            path = named_path(tree)
            if path.exists():
                return self._contents.digest(path) if key in MODELS else _rows(path)
        return tree


def configs(made: Iterable[CheckedCell]) -> dict[str, str]:
    """Return the configuration of each cell by its name, as TOML."""
    return {each.cell.name: to_toml(each.resolved) for each in made if each.resolved is not None}


def total_steps(spec: StageSpec) -> int:
    """Return the number of optimizer steps of a stage."""
    training = spec.config.training
    rows = len(spec.data.train) * (1 + copies(spec.config, spec.kind))
    return training.steps or training.epochs * -(-rows // training.batch_size)


def _with_shared_answers(resolved: Resolved) -> Resolved:
    """Return a configuration by which teachers are asked once for all cells, unless it says how.

    What they answer is the same up to rounding: cells keep their names.
    """
    stages = tuple(map(_sharing, resolved.stages))
    return replace(_sharing(resolved), stages=stages)


def _sharing(part: Configured) -> Configured:
    keys = [f"teachers.{number}.keep" for number in range(len(part.config.teachers))]
    teachers = [
        teacher if key in part.origins else teacher.model_copy(update={"keep": "share"})
        for key, teacher in zip(keys, part.config.teachers, strict=True)
    ]
    return replace(
        part,
        config=part.config.model_copy(update={"teachers": teachers}),
        origins={**dict.fromkeys(keys, Origin(Level.DEFAULT, "every study")), **part.origins},
    )


def _trees(resolved: Resolved, left_out: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the settings in which a run and its stages differ from the defaults."""
    stages = [{"name": each.name, **_given(each.config, left_out)} for each in resolved.stages]
    return [_given(resolved.config, left_out), *stages]


def _methods(text: str | None) -> list[list[str]]:
    """Return the names in a method expression, and those in each combiner."""
    if text is None:
        return []
    found = parse_expression(text)
    groups = [[group.combiner, *(each.name for each in group.members)] for group in found.groups]
    return [sorted(found.names), *groups]


def _given(config: RunConfig, left_out: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from the defaults, with the options of what they name."""
    tree: dict[str, Any] = config.model_dump(
        mode="json", exclude_defaults=True, exclude=left_out, exclude_none=True
    )
    options = dict(_options(config))
    return tree | {"options": options} if options else tree


def _options(config: RunConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, options in {**config.options, **config.optim.options}.items():
        given = options.model_dump(mode="json", exclude_defaults=True)
        if given:
            yield name, given


@functools.cache
def _rows(path: Path) -> str:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return digest.of_files(files)
