"""The subjects of `gkd eval`: the models of a finished run, or individual models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_core.analysis.exam import ComparedModel
from gkd_core.analysis.run_summary import compared_models, first_teacher
from gkd_core.config.resolve import resolve
from gkd_core.config.schema import StudentConfig, TeacherConfig
from gkd_core.errors import ConfigError
from gkd_core.evaluation.predictions import STUDENT
from gkd_core.models.tokenizer import load_tokenizer
from gkd_core.runs.directory import is_run
from gkd_core.runs.run import Run, prepare_run
from gkd_core.runs.run_files import CONFIG
from gkd_core.tracking.recorder import Recorder

if TYPE_CHECKING:
    from gkd_core.config.resolve import Resolved, ResolvedStage
    from gkd_core.plugins import Registry
    from gkd_core.runs.spec_builder import SpecBuilder
    from gkd_core.training.stage_spec import StageSpec

EVALUATED = "the model to evaluate"
"""What messages call a model that `gkd eval` is given."""


@dataclass(frozen=True)
class Named:
    """The subject that the user named on the command line.

    Attributes:
        name: As it was typed.
        run: Directory of the run that it is, or that it is part of; None for other models.
    """

    name: str
    run: Path | None

    @property
    def is_run(self) -> bool:
        """Whether it is a run as a whole."""
        return self.run is not None and Path(self.name) == self.run

    @property
    def config(self) -> list[Path]:
        """The configuration of its run, if it has one."""
        return [] if self.run is None else [self.run / CONFIG]

    def model(self, registry: Registry, trusts: bool) -> str:
        """Return the model that it stands for: of a run, its student.

        `RUN/NAME` is also the model that is called so in the table of the run, such as
        `RUN/teacher`, wherever its weights are.

        Args:
            registry: The plugins.
            trusts: Whether code that comes with models may run.

        Raises:
            ConfigError: A run is not finished, or has no such model.
        """
        if self.run is None:
            return self.name
        place = Path(self.name) / STUDENT if self.is_run else Path(self.name)
        if place.exists():
            return str(place)
        resolved = resolve(registry, files=self.config)
        run = open_run(self.run, resolved if trusts else without_trust(resolved), registry)
        models = {one.called: one.model for one in compared_models(run)}
        if place.name not in models:
            raise ConfigError(
                f"the run {self.run} has no model '{place.name}'; it has {', '.join(models)}"
            )
        return models[place.name]


@dataclass(frozen=True)
class Subjects:
    """Models to compare on the rows of a stage.

    Attributes:
        spec: The stage.
        models: The models.
        judge: Name of the model with which the others are compared; None if there is none.
    """

    spec: StageSpec
    models: Sequence[ComparedModel]
    judge: str | None


def find_named(name: str) -> Named:
    """Return the subject that a name stands for: a run, a part of one, or another model.

    Args:
        name: Directory or hub id.
    """
    path = Path(name)
    places = [path, *path.parents]
    return Named(name, next((place for place in places if is_run(place)), None))


def open_run(directory: Path, resolved: Resolved, registry: Registry) -> Run:
    """Return a finished run, to evaluate its models.

    Args:
        directory: Its directory.
        resolved: Its configuration.
        registry: The plugins.

    Raises:
        ConfigError: It is not finished.
    """
    run = Run(resolved, registry, prepare_run(resolved, registry), directory, Recorder([]))
    missing = [s.name for s in run.specs if not run.locations.is_finished(s)]
    if missing:
        raise ConfigError(
            f"the run {directory} is not finished: {', '.join(missing)}. Continue it with "
            f"gkd run --resume --output {directory}"
        )
    return run


def of_run(directory: Path, resolved: Resolved, registry: Registry) -> Subjects:
    """Return the models of the table of a finished run; arguments as for `open_run`."""
    run = open_run(directory, resolved, registry)
    return Subjects(run.last, list(compared_models(run)), first_teacher(run))


def alone(builder: SpecBuilder, resolved: Resolved, models: Sequence[str], called: str) -> Subjects:
    """Return models by themselves; the first of several judges the others.

    Args:
        builder: Reads the rows and the configurations of the models.
        resolved: The configuration, whose last stage has the task; it says whether code of models
            may run.
        models: Directories or hub ids.
        called: What messages call each of them.

    Raises:
        ConfigError: The models are not for the same kind of task.
    """
    stage, trusts = resolved.stages[-1], any(map(trusts_code, resolved.stages))
    specs = [builder.build(_with_model(stage, model, trusts, called)) for model in models]
    first = specs[0]
    for model, spec in zip(models, specs, strict=True):
        if spec.kind != first.kind:
            raise ConfigError(
                f"{models[0]} is for {first.kind}, but {model} for {spec.kind}; set task.kind"
            )
    found = [spec.teachers[0] for spec in specs]
    _, teachers = builder.assign_tokenizers(first.config, found, None)
    compared = [
        ComparedModel(model, one.trained, one.tokenizer, trusts)
        for model, one in zip(models, teachers, strict=True)
    ]
    spec = replace(first, teachers=tuple(teachers))
    return Subjects(spec, compared, models[0] if len(models) > 1 else None)


def language_models(
    named: Sequence[Named], resolved: Sequence[Resolved], registry: Registry
) -> list[ComparedModel]:
    """Return models that need no rows: those of the table of a run, or each by itself.

    Args:
        named: What the user named.
        resolved: The configuration of each, which says whether its code may run.
        registry: The plugins.
    """
    alone = named[0]
    if len(named) == 1 and alone.run is not None and alone.is_run:
        return list(compared_models(open_run(alone.run, resolved[0], registry)))
    found = []
    for each, its in zip(named, resolved, strict=True):
        trusts = any(map(trusts_code, its.stages))
        model = each.model(registry, trusts)
        tokenizer = load_tokenizer(model, trusts, EVALUATED)
        found.append(ComparedModel(model, model, tokenizer, trusts))
    return found


def trusts_code(stage: ResolvedStage) -> bool:
    """Return whether code that comes with a model of a stage may run: its student may have it."""
    config = stage.config
    return config.student.trust_remote_code or any(t.trust_remote_code for t in config.teachers)


def without_trust(resolved: Resolved) -> Resolved:
    """Return a configuration in which code of models may not run."""
    return replace(resolved, stages=tuple(map(_without_trust, resolved.stages)))


def _without_trust(stage: ResolvedStage) -> ResolvedStage:
    config = stage.config
    untrusted = {"trust_remote_code": False}
    own = {
        "teachers": [teacher.model_copy(update=untrusted) for teacher in config.teachers],
        "student": config.student.model_copy(update=untrusted),
    }
    return replace(stage, config=config.model_copy(update=own))


def _with_model(stage: ResolvedStage, model: str, trusts: bool, called: str) -> ResolvedStage:
    """Return a stage with a single model, and a method that is right for every task."""
    own = {
        "teachers": [TeacherConfig(model=model, trust_remote_code=trusts)],
        "student": StudentConfig(),
        "rollout": None,
        "writing": None,
        "samples": None,
        "probe": None,
    }
    config = stage.config.model_copy(update=own)
    alone = replace(stage, config=config, called={"teacher.model": called})
    # It needs no labels, which the rows to train on may lack.
    return alone.with_method("soft", "gkd eval")
