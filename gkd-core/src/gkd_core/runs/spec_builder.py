"""`SpecBuilder`: builds the specs of a run.

Everything that can be wrong with a run is found here: missing files, invalid rows, incompatible
models, layers out of range. Nothing of the run is written, and no weights are read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from gkd_core import digest
from gkd_core.config.expression import AVERAGE, Expression, parse_expression
from gkd_core.config.graph import stage_of
from gkd_core.config.resolve import ResolvedStage
from gkd_core.config.schema import RunConfig, TaskConfig
from gkd_core.contract.model_info import DataInfo, ModelInfo, Models
from gkd_core.contract.schedule import ALWAYS_1
from gkd_core.contract.task import TaskData
from gkd_core.data.holdout import fewer
from gkd_core.data.repeated_rows import repeated_rows
from gkd_core.errors import MethodError
from gkd_core.kinds.task_kind import TaskKind
from gkd_core.models.architectures import register_installed
from gkd_core.models.quantized import dequantized
from gkd_core.models.source import load_config
from gkd_core.models.tokenizer import load_tokenizer, token_texts, tokenizer_mismatch
from gkd_core.objective.ensemble import TeacherEnsemble
from gkd_core.objective.objective import name_seed
from gkd_core.objective.step_plan import ActiveMethod
from gkd_core.plugins import Registry, ask
from gkd_core.runs.chat_format import compare_tokens, follow_chat_format
from gkd_core.runs.checks import check_here, check_spec
from gkd_core.runs.classes import ClassOrder, Outputs
from gkd_core.runs.default_method import with_kind_defaults, with_labels
from gkd_core.runs.fingerprint import vocabulary as vocabulary_text
from gkd_core.runs.shared_rows import ModelFacts, SharedRows
from gkd_core.runs.site_checks import chosen_probes
from gkd_core.runs.source_checks import source_notes
from gkd_core.runs.teacher_builder import TeacherBuilder, model_info, teacher_setting
from gkd_core.runs.vocabulary import Texts, choose_vocabulary, read_through
from gkd_core.students.shape import student_config
from gkd_core.training.stage_spec import StageSpec, TeacherSpec
from gkd_core.vocabulary.reduced import ReducedVocabulary

AS_LARGE = (
    "warning: the student is a copy of the teacher, as large and as slow: nothing says how many "
    "blocks it is to have (--student-layers half)"
)
NOTHING_PROBED = "probes compare nothing, because no method reads a teacher"


def read_shapes(settings: ResolvedStage, registry: Registry) -> Models:
    """Return the shapes of a stage's student and, if it has one, its (first) teacher.

    Raises:
        GkdError: The stage is invalid.
    """
    spec = SpecBuilder(registry, [settings.config.task]).build(settings)
    teacher = spec.teachers[0].info if spec.teachers else None
    return Models(spec.student, teacher, spec.data.kind, _data_info(spec.data))


@dataclass(frozen=True)
class _Origins:
    """Where the models of a stage come from.

    Attributes:
        follows: The stage whose student it continues with; None to create one.
        start: The configuration of the student that it starts with; None if one is made from a
            teacher.
        relative: A stage whose student belongs to the same family as its models, if any.
        stages: For each teacher the stage whose student it is, or None; empty if no teacher counts.
        outputs: The outputs of the teachers and of the student that it starts with.
    """

    follows: StageSpec | None
    start: PretrainedConfig | None
    relative: StageSpec | None
    stages: Sequence[StageSpec | None]
    outputs: Sequence[Outputs]


@dataclass(frozen=True)
class _Readers:
    """The models of a stage as they read its rows.

    Attributes:
        tokenizer: The student's tokenizer.
        teachers: The teachers.
        vocabulary: The tokens of a student that has a part of its teacher's; None if it has all.
        end_token: The token that ends its answers, if that is not the one that it came with.
        notes: What was changed for this, in sentences.
    """

    tokenizer: PreTrainedTokenizerFast
    teachers: tuple[TeacherSpec, ...]
    vocabulary: ReducedVocabulary | None
    end_token: str | None
    notes: Sequence[str]


class SpecBuilder:
    """Builds the specs of a run; data shared by several stages is read once.

    Args:
        registry: The plugins.
        tasks: The tasks of the run's stages.
    """

    def __init__(self, registry: Registry, tasks: Iterable[TaskConfig] = ()) -> None:
        self.registry = registry
        register_installed(registry)
        self._tasks = tuple(tasks)
        self.rows = SharedRows(registry, self._tasks)
        self._teacher_builder = TeacherBuilder(registry, self.rows, self.load_tokenizer)
        self._vocabularies: dict[tuple[str, int], ReducedVocabulary] = {}

    def build(
        self,
        settings: ResolvedStage,
        follows: StageSpec | None = None,
        earlier: Mapping[str, StageSpec] | None = None,
    ) -> StageSpec:
        """Return the spec of a stage.

        Args:
            settings: Its configuration.
            follows: The stage whose student it continues with; None to create one.
            earlier: Earlier stages, whose students can be teachers, by name.

        Raises:
            GkdError: The stage is invalid.
        """
        origins = self._origins(settings, follows, earlier or {})
        order = ClassOrder(settings.config.task.classes, origins.outputs)
        facts = ModelFacts(self._made_for(origins.outputs), order.names)
        found = self.rows.load(settings, origins.relative, facts)
        kind = self.registry.kind(found.kind)
        data = order.apply(found, kind)
        settings = with_labels(settings, data, kind, self.registry)
        settings = with_kind_defaults(settings, kind, self.registry)
        readers = self._readers(settings, data, kind, origins)
        rows = settings.config.task.rows
        if rows is not None:
            data = order.apply(replace(found, train=fewer(found.train, rows)), kind)
        notes = (*settings.notes, *order.notes(data, kind, found.classes), *readers.notes)
        spec = replace(self._assembled(settings, data, kind, origins, readers), notes=notes)
        self.check(spec)
        return self._completed(spec)

    def _origins(
        self,
        settings: ResolvedStage,
        follows: StageSpec | None,
        earlier: Mapping[str, StageSpec],
    ) -> _Origins:
        config = settings.config
        stages = [earlier.get(stage_of(teacher.model) or "") for teacher in config.teachers]
        relative = follows if follows or config.student.model else stages[0]
        start = follows.student_config if follows else _checkpoint(config)
        if not self._is_taught(config, _expression(settings), start):
            stages = []
        outputs = tuple(_outputs(settings, stages, start))
        return _Origins(follows, start, relative, tuple(stages), outputs)

    def _readers(
        self, settings: ResolvedStage, data: TaskData, kind: TaskKind, origins: _Origins
    ) -> _Readers:
        """Return the student's tokenizer and the teachers, settled with each other."""
        config, follows = settings.config, origins.follows
        found = self._teacher_builder.build(settings, data, follows, origins.stages)
        tokenizer, teachers = self.assign_tokenizers(config, found, follows)
        vocabulary = follows.vocabulary if follows is not None else None
        if vocabulary is not None:
            teachers = read_through(vocabulary, teachers)
        before = tokenizer.eos_token
        notes = follow_chat_format(tokenizer, teachers, data, config) if kind.generates else []
        if origins.start is None and config.student.vocabulary is not None:
            vocabulary = self.vocabulary(settings, origins.relative, teachers)
            tokenizer, teachers = vocabulary.tokenizer, read_through(vocabulary, teachers)
        if vocabulary is not None:
            notes = [*notes, f"vocabulary: {vocabulary}"]
        end = tokenizer.eos_token if tokenizer.eos_token != before else None
        return _Readers(tokenizer, tuple(teachers), vocabulary, end, tuple(notes))

    def _assembled(
        self,
        settings: ResolvedStage,
        data: TaskData,
        kind: TaskKind,
        origins: _Origins,
        readers: _Readers,
    ) -> StageSpec:
        """Return the spec of a stage, of which nothing is checked or noted."""
        config, expression = settings.config, _expression(settings)
        teachers = readers.teachers
        shape = _student_shape(config, teachers, data, kind, origins.start)
        student = model_info("student", shape, data, self.registry)
        if kind.is_lm and self._aligns(expression):
            student = _with_tokens(student, readers.tokenizer)
            teachers = tuple(replace(t, info=_with_tokens(t.info, t.tokenizer)) for t in teachers)
        return StageSpec(
            name=settings.name,
            settings=settings,
            expression=expression,
            data=data,
            kind=kind,
            task=self.rows.task(config, config.task),
            tokenizer=readers.tokenizer,
            teachers=teachers,
            student=student,
            student_config=shape,
            members=tuple(self._members(config, expression, data, student, teachers)),
            follows=origins.follows,
            end_token=readers.end_token,
            vocabulary=readers.vocabulary,
        )

    def _completed(self, spec: StageSpec) -> StageSpec:
        """Return a checked spec with its probes, and with all that is to be said of it."""
        data = spec.data
        repeated = None if data.test is None else repeated_rows(data.train, data.test)
        notes = [*spec.notes, *source_notes(spec), *compare_tokens(spec)]
        notes += [] if repeated is None else [repeated]
        notes += [AS_LARGE] if _is_as_large_unsaid(spec) else []
        if spec.config.probe is None:
            return replace(spec, notes=tuple(notes)) if len(notes) > len(spec.notes) else spec
        probed = tuple(chosen_probes(spec, self.registry))
        notes += [] if probed else [NOTHING_PROBED]
        return replace(spec, probed=probed, notes=tuple(notes))

    def assign_tokenizers(
        self, config: RunConfig, teachers: Sequence[TeacherSpec], follows: StageSpec | None
    ) -> tuple[PreTrainedTokenizerFast, list[TeacherSpec]]:
        """Return the student's tokenizer, and the teachers.

        Of several tokenizers whose ids mean the same, the first stands for all; the student's is
        its own.
        """
        own = follows.tokenizer if follows is not None else None
        student = config.student
        if own is None and student.model is not None:
            own = self.load_tokenizer(student.model, student.trust_remote_code, "student.model")
        known = [] if own is None else [own]
        assigned = [
            replace(
                teacher,
                tokenizer=_first_equal(teacher.tokenizer, known),
                own_tokenizer=teacher.tokenizer,
            )
            for teacher in teachers
        ]
        return known[0], assigned

    def load_tokenizer(
        self, model: str, trust_remote_code: bool, setting: str
    ) -> PreTrainedTokenizerFast:
        """Return the tokenizer of a model."""
        return load_tokenizer(model, trust_remote_code, setting)

    def vocabulary(
        self, settings: ResolvedStage, relative: StageSpec | None, teachers: Sequence[TeacherSpec]
    ) -> ReducedVocabulary:
        """Return the tokens of a student that has a part of its teacher's: the same in all stages.

        Raises:
            ConfigError: The texts of the run need more tokens, or the tokenizer cannot be cut.
        """
        teacher, size = teachers[0], settings.config.student.vocabulary
        assert size is not None, "the caller checks `student.vocabulary`"
        before = None if teacher.stage is None else teacher.stage.vocabulary
        if before is not None and len(before.kept) == size:
            return before
        key = digest.of_value(vocabulary_text(teacher.tokenizer)), size
        if key not in self._vocabularies:
            texts = list(self._texts(settings, relative, teachers))
            self._vocabularies[key] = choose_vocabulary(size, teacher, teacher.tokenizer, texts)
        return self._vocabularies[key]

    def _texts(
        self, settings: ResolvedStage, relative: StageSpec | None, teachers: Sequence[TeacherSpec]
    ) -> Iterator[Texts]:
        """Yield the rows of every task of the run."""
        config = settings.config
        longest = min(teacher.info.max_length for teacher in teachers)
        for task in dict.fromkeys((config.task, *self._tasks)):
            own = config.model_copy(update={"task": task})
            found = self.rows.load(replace(settings, config=own), relative, ModelFacts())
            train = found.train if task.rows is None else fewer(found.train, task.rows)
            limit = task.max_length or min(self.rows.task(config, task).max_length, longest)
            kind = self.registry.kind(found.kind)
            yield Texts(replace(found, train=train), kind, limit)

    def check(self, spec: StageSpec) -> None:
        """Reject a stage that cannot be trained."""
        check_spec(spec, self.registry)
        check_here(spec)

    def _made_for(self, models: Iterable[Outputs]) -> str | None:
        """Return the kind that the first model was made for that says so."""
        kinds = [(name, kind) for name, kind in self.registry.kinds.items() if not kind.is_lm]
        pairs = ((model, name, kind) for model in models for name, kind in kinds)
        made = (name for m, name, kind in pairs if ask(partial(kind.made, m.config), False))
        return next(made, None)

    def _aligns(self, expression: Expression) -> bool:
        """Return whether a method aligns the tokens of two vocabularies."""
        return any(self.registry.method(member.name).aligns for member in expression.members)

    def _is_taught(
        self, config: RunConfig, expression: Expression, start: PretrainedConfig | None
    ) -> bool:
        """Return whether a method reads teachers, or the student is made from one."""
        methods = [self.registry.method(member.name) for member in expression.members]
        reads = bool(expression.groups) or any(method.teachers == "one" for method in methods)
        writes = config.rollout is not None and config.rollout.uses_teacher
        return start is None or reads or writes or config.writing is not None

    def _members(
        self,
        config: RunConfig,
        expression: Expression,
        data: TaskData,
        student: ModelInfo,
        teachers: Sequence[TeacherSpec],
    ) -> Iterable[ActiveMethod]:
        alone = Models(student, None, data.kind, _data_info(data))
        taught = [replace(alone, teacher=teacher.info) for teacher in teachers]
        ensembles = self._ensembles(config, expression, taught)
        for member in expression.members:
            method = self.registry.method(member.name)
            reads_none = method.teachers == "none"
            group = expression.group_of(member.name)
            ensemble = ensembles.get(group.combiner if group else AVERAGE)
            if reads_none:
                ensemble = _for_each_teacher(member.name, ensemble if group else None)
            models = [alone for _ in taught] if reads_none else taught
            if ensemble is None:
                models = models[:1] or [alone]
            yield ActiveMethod(
                name=member.name,
                weight=member.weight,
                methods=tuple(method(config.options.get(member.name)) for _ in models),
                models=tuple(models),
                generator=_generator(config, member.name),
                ensemble=ensemble,
                outside=group.weight if group else ALWAYS_1,
            )

    def _ensembles(
        self,
        config: RunConfig,
        expression: Expression,
        taught: Sequence[Models],
    ) -> dict[str, TeacherEnsemble]:
        """Return the combiners by name, including the one for methods without parentheses."""
        weights = {AVERAGE: ALWAYS_1} if len(taught) > 1 else {}
        weights |= {group.combiner: group.weight for group in expression.groups}
        models = tuple(taught)
        return {
            name: TeacherEnsemble(
                name=name,
                weight=weight,
                combiner=self.registry.combiner(name)(config.options.get(name), models),
                models=models,
                generator=_generator(config, name),
            )
            for name, weight in weights.items()
        }


def _with_tokens(info: ModelInfo, tokenizer: PreTrainedTokenizerFast) -> ModelInfo:
    return replace(info, tokens=token_texts(tokenizer))


def _is_as_large_unsaid(spec: StageSpec) -> bool:
    """Return whether the student is a copy of its teacher, and nothing says that this is meant."""
    config, student = spec.config, spec.config.student
    given = (student.layers, student.lora, student.vocabulary)
    taught_by_itself = any(teacher.prompt or teacher.follow for teacher in config.teachers)
    is_meant = taught_by_itself or any(value is not None for value in given)
    return bool(spec.teachers) and not is_meant and spec.is_whole_teacher


def _expression(settings: ResolvedStage) -> Expression:
    return parse_expression(settings.config.method, settings.origin("method"))


def _data_info(data: TaskData) -> DataInfo:
    return DataInfo(len(data.train), data.classes, data.sources)


def _for_each_teacher(method: str, ensemble: TeacherEnsemble | None) -> TeacherEnsemble | None:
    """Return the ensemble of a method that reads no teacher; reject one that needs teachers."""
    if ensemble is None or ensemble.combiner.splits_student:
        return ensemble
    name = ensemble.name
    raise MethodError(
        f"{method} reads no teacher, so {name} has nothing to combine for it. Move it out of the "
        f"parentheses: {name}(...)+{method}"
    )


def _generator(config: RunConfig, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(name_seed(config.seed, name))


def _checkpoint(config: RunConfig) -> PretrainedConfig | None:
    """Return the configuration of the checkpoint that the student starts from, if any."""
    if config.student.model is None:
        return None
    return load_config(config.student.model, config.student.trust_remote_code, "student.model")


def _outputs(
    settings: ResolvedStage, stages: Sequence[StageSpec | None], start: PretrainedConfig | None
) -> Iterable[Outputs]:
    """Yield the outputs of the teachers, given the stages that they come from, and of the start."""
    for teacher, stage in zip(settings.config.teachers, stages, strict=False):
        setting = teacher_setting(teacher, settings)
        if stage is not None:
            yield Outputs(setting, stage.student_config, teaches=True)
        elif teacher.model is not None:
            model = dequantized(teacher.model, setting)
            found = load_config(model, teacher.trust_remote_code, setting)
            yield Outputs(setting, found, teaches=True)
    if start is not None:
        yield Outputs("student.model", start, teaches=False)


def _student_shape(
    config: RunConfig,
    teachers: Sequence[TeacherSpec],
    data: TaskData,
    kind: TaskKind,
    start: PretrainedConfig | None,
) -> PretrainedConfig:
    if start is None:
        return student_config(config.student, teachers[0].config, kind, data.classes)
    shape = copy.deepcopy(start)
    kind.configure(shape, data.classes)
    return shape


def _first_equal(
    tokenizer: PreTrainedTokenizerFast, known: list[PreTrainedTokenizerFast]
) -> PreTrainedTokenizerFast:
    """Return the first known tokenizer that gives the same token ids; add this one if none does."""
    for one in known:
        if tokenizer_mismatch(one, tokenizer) is None:
            return one
    known.append(tokenizer)
    return tokenizer
