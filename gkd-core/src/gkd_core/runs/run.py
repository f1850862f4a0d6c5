"""`Run`: the stages of a configuration, trained one after another."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from transformers import PreTrainedModel

from gkd_core.config.resolve import Resolved
from gkd_core.config.schema import RunConfig, StudentConfig, TrainingConfig
from gkd_core.contract.run_info import RunInfo
from gkd_core.data.cache_limit import cache_limit, shrink_cache
from gkd_core.distributed.ranks import is_first, tell, wait
from gkd_core.errors import ConfigError
from gkd_core.lease import Lease
from gkd_core.models.adapters import adapter_writer, merged_state
from gkd_core.models.content import ModelContents
from gkd_core.models.save import save_model
from gkd_core.parallel.weights import whole_state
from gkd_core.plugins import Registry
from gkd_core.runs.baseline import with_baseline
from gkd_core.runs.checks import check_labels_differ
from gkd_core.runs.default_method import LABELS
from gkd_core.runs.fingerprint import Fingerprints, StageFingerprint
from gkd_core.runs.inputs import InputReader
from gkd_core.runs.locations import Locations
from gkd_core.runs.outline import RunOutline, outline_run
from gkd_core.runs.result import StageResult
from gkd_core.runs.reuse import alone, recall, remember, take_over
from gkd_core.runs.run_files import DONE
from gkd_core.runs.site_checks import check_architectures
from gkd_core.runs.source_checks import check_later_answers
from gkd_core.runs.spec_builder import SpecBuilder
from gkd_core.runs.summary import stage_summary
from gkd_core.runs.training_cost import training_cost
from gkd_core.runs.weight_checks import check_later_weights
from gkd_core.runs.writing import write_answers
from gkd_core.tracking.recorder import Recorder
from gkd_core.training.assembly import build_stage
from gkd_core.training.checkpoint import remove_checkpoints
from gkd_core.training.loop import train
from gkd_core.training.manifest import MANIFEST, Difference, Manifest
from gkd_core.training.plugin_hooks import PluginHooks
from gkd_core.training.stage import Stage
from gkd_core.training.stage_spec import BASELINE, TEACHER, StageSpec, TeacherSpec
from gkd_core.training.teacher_quality import doubtful_teachers


@dataclass
class Run:
    """A run in progress.

    Attributes:
        resolved: Its configuration.
        registry: The plugins.
        specs: Its stages in order; a task's default teacher and the baseline come first.
        directory: The directory to which everything is written.
        recorder: Receives metrics and messages.
        lease: The lease of the directory; the first rank of a command has it.
        results: Results of the finished stages, by name.
        contents: Reads the files of models.
        differences: What is not as it was when the run began, if it goes on nevertheless. Its
            students do not serve other runs then.
    """

    resolved: Resolved
    registry: Registry
    specs: Sequence[StageSpec]
    directory: Path
    recorder: Recorder
    lease: Lease | None = None
    results: dict[str, StageResult] = field(default_factory=dict)
    contents: ModelContents = field(default_factory=ModelContents)
    differences: tuple[Difference, ...] = ()
    _manifests: dict[str, Manifest] = field(default_factory=dict, init=False, repr=False)

    @property
    def last(self) -> StageSpec:
        """The stage that produces the final student."""
        return self.specs[-1]

    @property
    def methods(self) -> str:
        """The methods of the configured stages, as in `distilbert then hard`."""
        names = {stage.name for stage in self.resolved.stages}
        return " then ".join(str(b.expression) for b in self.specs if b.name in names)

    @property
    def teachers(self) -> tuple[TeacherSpec, ...]:
        """The teachers that the final student is compared with: the latest ones for its task.

        A teacher trained in an earlier stage is preceded by the teachers that it learned from.
        """
        last = self.last
        same = [b for b in self.specs if _same_task(b, last)]
        nearest = next((b.teachers for b in reversed(same) if b.teachers), ())
        found = {t.model: self.locations.teacher(t) for t in _lineage(nearest, last)}
        return tuple(found.values())

    @property
    def info(self) -> RunInfo:
        """The run as hooks see it."""
        return RunInfo(
            directory=self.directory,
            config=self.resolved.config,
            methods=self.methods,
            outline=self.outline,
            results=MappingProxyType(dict(self.results)),
            say=self.recorder.say,
        )

    @property
    def hooks(self) -> PluginHooks:
        """The hooks of the run's plugins."""
        return PluginHooks(self.registry, lambda: self.info)

    @functools.cached_property
    def locations(self) -> Locations:
        """Where it keeps the students of its stages."""
        return Locations(self.directory, self.specs)

    @functools.cached_property
    def outline(self) -> RunOutline:
        """The outline of its stages, with passes, captured tensors and method weights."""
        return outline_run(self.specs)

    @property
    def student(self) -> Path:
        """Directory of the final student."""
        return self.locations.final

    def execute(self) -> None:
        """Train every stage that is not finished yet.

        Raises:
            GkdError: A stage cannot be built, or its loss is not finite.
        """
        fingerprints = Fingerprints(self.registry, self.contents)
        if is_first():
            unfinished = [s for s in self.specs if not self.locations.is_finished(s)]
            check_later_weights(unfinished)
            check_later_answers(unfinished)
        for difference in self.differences:
            self.recorder.say(f"resumed: {difference}")
        self._say_outline()
        self.recorder.start_run(self._costs())
        for number, spec in enumerate(self.specs, start=1):
            self.check_lease()
            folder = self.locations.folder(spec)
            done = folder / DONE
            fingerprint = fingerprints.of(spec) if is_first() and self._reuses else None
            if tell(done.exists()):
                self._say_finished(spec.name, done, fingerprint)
            else:
                self._say_next(number, spec.name, fingerprint)
                with alone(self._reusable(spec, fingerprint), self.recorder.say):
                    self._make(spec, fingerprint)
            if is_first():
                remove_checkpoints(folder)
            wait()
            self.results[spec.name] = result = StageResult.load(done)
            fingerprints.settle(spec.name, result.fingerprint)

    def _make(self, spec: StageSpec, fingerprint: StageFingerprint | None) -> None:
        """Take over the student of a stage, or train it."""
        manifest = self._manifests[spec.name] = self._manifest(spec)
        result = self._take_over(spec, fingerprint) or self._train(spec)
        result = replace(result, fingerprint=fingerprint, differences=self.differences)
        self._finish(spec, result, manifest)

    def _reusable(
        self, spec: StageSpec, fingerprint: StageFingerprint | None
    ) -> StageFingerprint | None:
        """Return the fingerprint by which a stage is taken over, if it may be.

        With probes, the stage is trained: they are measured on the way.
        """
        return None if spec.config.probe is not None else fingerprint

    def check_lease(self) -> None:
        """Make sure that the directory may still be written.

        Raises:
            LeaseLost: Another process has taken it.
        """
        if self.lease is not None:
            self.lease.check()

    @property
    def _reuses(self) -> bool:
        return self.resolved.config.output.reuse and not self.differences

    def _manifest(self, spec: StageSpec) -> Manifest:
        """Return what determines the student of a stage that is about to be trained."""
        if not is_first():
            return Manifest()
        reader = InputReader(self.resolved, self.registry, self.contents)
        return Manifest(
            inputs=reader.read(self.locations.ready(spec), self.locations.start(spec)),
            models=self.contents.known,
            differences=self.differences,
        )

    def _costs(self) -> dict[str, float]:
        """Return the arithmetic of each stage that is not finished."""
        locations = self.locations
        return {s.name: training_cost(s) for s in self.specs if not locations.is_finished(s)}

    def _say_outline(self) -> None:
        """Log the stages, if there are several, and which of them are finished."""
        if len(self.specs) > 1:
            finished = [s.name for s in self.specs if self.locations.is_finished(s)]
            for line in stage_summary(self.outline.stages, finished):
                self.recorder.say(f"stage {line}")

    def _say_next(self, number: int, name: str, fingerprint: StageFingerprint | None) -> None:
        which = f", fingerprint {fingerprint}" if fingerprint is not None else ""
        self.recorder.say(f"stage {name} ({number} of {len(self.specs)}{which})")

    def _say_finished(self, name: str, done: Path, fingerprint: StageFingerprint | None) -> None:
        before = StageResult.load(done).fingerprint
        changed = fingerprint.changed(before) if fingerprint and before else []
        since = f"; changed since then: {', '.join(changed)}" if changed else ""
        self.recorder.say(f"stage {name} is finished already{since}")

    def _take_over(
        self, spec: StageSpec, fingerprint: StageFingerprint | None
    ) -> StageResult | None:
        """Copy the stage's student from a run that has already trained it, if there is one."""
        reusable = self._reusable(spec, fingerprint)
        found = recall(reusable) if reusable is not None else None
        target = self.locations.student(spec)
        result = take_over(found, self.directory, target) if found is not None else None
        result = tell(result)
        if result is not None:
            self.recorder.say(f"stage {spec.name} is copied from {result.reused}")
            self._keep_teacher(spec)
        return result

    def _finish(self, spec: StageSpec, result: StageResult, manifest: Manifest) -> None:
        """Save the result of a stage in this run, and record it for other runs."""
        if is_first():
            folder = self.locations.folder(spec)
            folder.mkdir(parents=True, exist_ok=True)
            student = self.contents.files(self.locations.student(spec))
            replace(manifest, models=self.contents.known, files=student).save(folder / MANIFEST)
            result.save(folder / DONE)
            if result.fingerprint is not None:
                remember(result.fingerprint, self.directory, result)
            shrink_cache()

    def _keep_teacher(self, spec: StageSpec) -> None:
        if spec.store is not None and is_first() and not self.differences:
            spec.store.keep(self.locations.student(spec))

    def _train(self, spec: StageSpec) -> StageResult:
        target, folder = self.locations.student(spec), self.locations.folder(spec)
        stage = self.build(spec)
        stage.manifest, stage.lease = self._manifests[spec.name], self.lease
        for line in (*stage.describe(), *doubtful_teachers(stage)):
            self.recorder.say(line)
        hooks = self.hooks
        error: BaseException | None = None
        try:
            progress = train(stage, self.recorder, hooks)
            self.check_lease()
            _save(stage.objective.finalize_student(stage.student.model, folder), spec, target)
        except BaseException as failure:
            error = failure
            raise
        finally:
            self.recorder.end_stage()
            hooks.stage_end(stage, error)
        stage.engine.close()
        self._keep_teacher(spec)
        return StageResult(
            name=spec.name,
            student=str(target),
            steps=progress.step,
            metric=stage.metric.name,
            best=progress.best,
            best_step=progress.best_step,
            seconds=progress.seconds,
            kept=tuple(progress.kept),
        )

    def build(self, spec: StageSpec) -> Stage:
        """Return a stage of the run with its models, once the stages before it are finished."""
        start = self._start(spec)
        folder = self.locations.folder(spec)
        return build_stage(self._with_answers(spec), self.registry, folder, start)

    def _with_answers(self, spec: StageSpec) -> StageSpec:
        """Return the spec of a stage whose teachers are trained and have written what they do."""
        ready, folder = self.locations.ready(spec), self.locations.folder(spec)
        if not spec.is_written:
            return ready
        teacher = Fingerprints(self.registry, self.contents).of_teacher(ready.teachers[0])
        return write_answers(ready, self.registry, folder, tell(teacher), self.recorder.say)

    def _start(self, spec: StageSpec) -> Path | None:
        """Return the directory of the student to continue with; None if the stage creates one."""
        before = spec.follows
        if before is None:
            return None
        if spec.name != BASELINE:
            return self.locations.start(spec)
        start = self.locations.folder(spec) / "start"
        folder = self.locations.folder(before)
        untrained = build_stage(self.locations.ready(before), self.registry, folder, None)
        _save(untrained.origin.model, before, start)
        untrained.engine.close()
        return start


def _save(model: PreTrainedModel, spec: StageSpec, target: Path) -> None:
    """Save a model, which may be sharded over the ranks, from the first rank, merged."""
    weights = whole_state(model)
    if is_first():
        merged, adapter = merged_state(model, weights), adapter_writer(model, weights)
        save_model(model, spec.tokenizer, target, merged, adapter)
    wait()


def prepare_run(resolved: Resolved, registry: Registry) -> list[StageSpec]:
    """Return the specs of a run's stages, after plugins have checked the outline.

    Nothing is loaded or written except the untrained model of a task's default teacher.

    Raises:
        GkdError: The run is invalid.
    """
    cache_limit()  # is read when a stage has been trained
    assert resolved.config.procedure is None, "a procedure must be expanded into stages first"
    builder = SpecBuilder(registry, [stage.config.task for stage in resolved.stages])
    built = build_specs(resolved, builder)
    for spec in built.values():
        check_labels_differ(spec)
    specs = with_baseline(resolved, built, builder)
    specs = [*_default_teachers(builder, specs), *specs]
    outline = outline_run(specs)
    registry.manager.hook.gkd_check_outline(outline=outline)
    # Plugins first: they know which setting of theirs asks for what an architecture cannot do.
    for spec in specs:
        check_architectures(spec, registry)
    return specs


def build_specs(resolved: Resolved, builder: SpecBuilder) -> dict[str, StageSpec]:
    """Return the specs of the configured stages, by name.

    Raises:
        GkdError: A stage is invalid.
    """
    built: dict[str, StageSpec] = {}
    for settings in resolved.stages:
        _refuse_reserved(settings.name)
        start = resolved.links[settings.name].start
        built[settings.name] = builder.build(settings, built[start] if start else None, built)
    return built


def _same_task(one: StageSpec, other: StageSpec) -> bool:
    return (one.kind, one.data.classes) == (other.kind, other.data.classes)


def _lineage(teachers: Iterable[TeacherSpec], last: StageSpec) -> Iterator[TeacherSpec]:
    """Yield teachers, each preceded by those from which it learned the last stage's task."""
    for teacher in teachers:
        if teacher.stage is not None and _same_task(teacher.stage, last):
            yield from _lineage(teacher.stage.teachers, last)
        yield teacher


def _refuse_reserved(name: str) -> None:
    if name in (TEACHER, BASELINE):
        raise ConfigError(
            f"a stage cannot be named '{name}': that name is reserved for the stage that gkd adds "
            f"to train {'a teacher' if name == TEACHER else 'on labels alone'}. Choose another name"
        )


def _default_teachers(builder: SpecBuilder, specs: Sequence[StageSpec]) -> Iterator[StageSpec]:
    """Yield the stages that train the default teachers not yet in the cache.

    Such a teacher serves every run, so of this run only the data may determine its weights.
    """
    seen: set[Path] = set()
    for spec in specs:
        teachers = spec.teachers if spec.loads_teachers else ()
        for store in (source.store for source in teachers):
            if store is None or store.ready or store.trained in seen:
                continue
            config = RunConfig(
                method=LABELS,
                student=StudentConfig(model=str(store.untrained)),
                task=spec.config.task.model_copy(
                    update={"rows": None, "augment": 0, "mask_share": store.teacher.mask_share}
                ),
                training=TrainingConfig(**store.teacher.training),
                parallel=spec.config.parallel,
            )
            name = f"{TEACHER}-{len(seen) + 1}" if seen else TEACHER
            seen.add(store.trained)
            settings = replace(spec.settings, name=name, config=config, adjusted=())
            yield replace(builder.build(settings), store=store)
