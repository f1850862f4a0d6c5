"""`Run`: all stages of a configuration, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gkd_core.analysis.recorder import Recorder
from gkd_core.config.resolve import Resolved, ResolvedStage, task_name
from gkd_core.config.schema import RunConfig, StudentConfig, TrainingConfig
from gkd_core.config.sources import Level, Origin
from gkd_core.errors import ConfigError
from gkd_core.models.save import save_model
from gkd_core.plugins import Registry
from gkd_core.training.blueprint import Blueprint, Draughtsman
from gkd_core.training.checkpoint import remove_checkpoints
from gkd_core.training.loop import train
from gkd_core.training.plan import RunPlan, plan_stage
from gkd_core.training.result import StageResult
from gkd_core.training.run_directory import DONE, STAGES
from gkd_core.training.stage import build_stage

TEACHER = "teacher"
BASELINE = "baseline"


@dataclass
class Run:
    """A run under way.

    Attributes:
        resolved: Its configuration.
        registry: The plugins.
        blueprints: Its stages in order; a task's own teacher and the baseline come first.
        directory: Where everything is written.
        recorder: Who is told what happens.
        results: How the finished stages ended, by name.
    """

    resolved: Resolved
    registry: Registry
    blueprints: Sequence[Blueprint]
    directory: Path
    recorder: Recorder
    results: dict[str, StageResult] = field(default_factory=dict)

    @property
    def last(self) -> Blueprint:
        """The stage that gives the final student."""
        return self.blueprints[-1]

    @property
    def student(self) -> Path:
        """Directory of the final student."""
        return self.directory / "student"

    def execute(self) -> None:
        """Train every stage that is not finished yet.

        Raises:
            GkdError: A stage cannot be built, or its loss is not finite.
        """
        for blueprint in self.blueprints:
            folder = self._folder(blueprint)
            done = folder / DONE
            if done.exists():
                self.recorder.say(f"stage {blueprint.name} is finished already")
            else:
                self._train(blueprint).save(done)
            remove_checkpoints(folder)
            self.results[blueprint.name] = StageResult.load(done)

    def _train(self, blueprint: Blueprint) -> StageResult:
        before = None if blueprint.follows is None else self._target(blueprint.follows)
        target = self._target(blueprint)
        stage = build_stage(blueprint, self.registry, self._folder(blueprint), before)
        for line in stage.describe():
            self.recorder.say(line)
        error: BaseException | None = None
        try:
            progress = train(self, stage)
            save_model(stage.student.model, blueprint.tokenizer, target)
        except BaseException as failure:
            error = failure
            raise
        finally:
            self.recorder.end_stage()
            self.registry.manager.hook.gkd_stage_end(run=self, stage=stage, error=error)
        if blueprint.home is not None:
            blueprint.home.keep(target)
        return StageResult(
            name=blueprint.name,
            student=str(target),
            steps=progress.step,
            metric=stage.metric.name,
            best=progress.best,
            best_step=progress.best_step,
            seconds=progress.seconds,
        )

    def _folder(self, blueprint: Blueprint) -> Path:
        return self.directory / STAGES / blueprint.name

    def _target(self, blueprint: Blueprint) -> Path:
        """Return where the student of a stage is written."""
        if blueprint is self.last:
            return self.student
        if blueprint.name == BASELINE:
            return self.directory / BASELINE
        return self._folder(blueprint) / "student"


def draw_run(resolved: Resolved, registry: Registry) -> list[Blueprint]:
    """Return the blueprints of a run's stages, after letting plugins see the plan.

    Nothing is loaded or written but the untrained model of a task's own teacher.

    Raises:
        GkdError: Something about the run is wrong.
    """
    draughtsman = Draughtsman(registry)
    blueprints: list[Blueprint] = []
    for settings in resolved.stages:
        _refuse_reserved(settings.name)
        before = blueprints[-1] if blueprints else None
        goes_on = before is not None and before.config.student == settings.config.student
        blueprints.append(draughtsman.draw(settings, before if goes_on else None))
    if _wants_baseline(resolved):
        blueprints.insert(0, draughtsman.draw(_baseline(resolved)))
    blueprints = [*_own_teachers(draughtsman, blueprints), *blueprints]
    plan = RunPlan(tuple(plan_stage(blueprint) for blueprint in blueprints))
    registry.manager.hook.gkd_check_plan(plan=plan)
    return blueprints


def _refuse_reserved(name: str) -> None:
    if name in (TEACHER, BASELINE):
        raise ConfigError(
            f"a stage cannot be named '{name}': that is the name of the stage which gkd adds to "
            f"train {'a teacher' if name == TEACHER else 'on labels alone'}. Give it another name"
        )


def _wants_baseline(resolved: Resolved) -> bool:
    if resolved.config.baseline is not None:
        return resolved.config.baseline
    return task_name(resolved.stages[-1].config.task) == "embedded"


def _baseline(resolved: Resolved) -> ResolvedStage:
    """Return the stage that trains the same student in the same way on labels alone."""
    first, last = resolved.stages[0], resolved.stages[-1]
    config = last.config.model_copy(update={"method": "hard", "student": first.config.student})
    origins = {**last.origins, "method": Origin(Level.DEFAULT, "the baseline")}
    return replace(last, name=BASELINE, config=config, origins=origins)


def _own_teachers(draughtsman: Draughtsman, blueprints: Sequence[Blueprint]) -> Iterator[Blueprint]:
    """Yield the stages that train what a task brings as its teacher, where that is to be done.

    Such a teacher serves every run, so that nothing of this one but the data decides its weights.
    """
    seen: set[Path] = set()
    for blueprint in blueprints:
        for home in (source.home for source in blueprint.teachers):
            if home is None or home.ready or home.trained in seen:
                continue
            config = RunConfig(
                method="hard",
                student=StudentConfig(model=str(home.untrained)),
                task=blueprint.config.task.model_copy(update={"rows": None}),
                training=TrainingConfig(**home.own.training),
                parallel=blueprint.config.parallel,
            )
            name = f"{TEACHER}-{len(seen) + 1}" if seen else TEACHER
            seen.add(home.trained)
            settings = replace(blueprint.settings, name=name, config=config)
            yield replace(draughtsman.draw(settings), home=home)
