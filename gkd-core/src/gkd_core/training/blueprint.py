"""`Blueprint`: a stage thought through before any weight is loaded.

Whatever can be wrong with a run is found here: unknown files, bad rows, models that do not fit
together, layers out of range. Nothing of the run is written and no weight is read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from gkd_core.config.expression import Expression, parse_expression
from gkd_core.config.resolve import ResolvedStage, task_name
from gkd_core.config.schema import RunConfig, TaskConfig, TaskKind, TeacherConfig
from gkd_core.data.assemble import without_labels
from gkd_core.data.classes import order_classes
from gkd_core.data.holdout import fewer
from gkd_core.data.task import Kind, OwnTeacher, TaskData
from gkd_core.errors import ConfigError
from gkd_core.models.classes import check_classes, set_classes, teacher_classes
from gkd_core.models.info import ModelInfo, Models
from gkd_core.models.layer_map import init_layers
from gkd_core.models.load import language_model_kind
from gkd_core.models.source import load_config
from gkd_core.models.student import student_config
from gkd_core.models.tokenizer import load_tokenizer, tokenizer_mismatch
from gkd_core.plugins import Registry
from gkd_core.training.checks import LM_KINDS, check_blueprint
from gkd_core.training.objective import name_seed
from gkd_core.training.own_teacher import TeacherHome, teacher_home
from gkd_core.training.passes import Member

TEACHER = "teacher"
BASELINE = "baseline"
"""Names of the stages that gkd adds to a run."""

MAX_LENGTH = 128
"""Longest sequence in tokens where neither the configuration nor a model says less."""


@dataclass(frozen=True)
class TeacherSource:
    """A teacher before it is loaded.

    Attributes:
        info: Its shape and name.
        setting: What named it, such as `teacher.model`.
        model: Directory or hub id.
        config: Its Hugging Face configuration.
        trust_remote_code: Whether code that comes with it may run.
        home: Where it is to be trained first, for a task's own teacher.
    """

    info: ModelInfo
    setting: str
    model: str
    config: PretrainedConfig
    trust_remote_code: bool
    home: TeacherHome | None = None

    @property
    def trained(self) -> str:
        """Where the trained teacher is; for a task's own teacher once it is trained."""
        return str(self.home.trained) if self.home else self.model


@dataclass(frozen=True)
class Blueprint:
    """A stage before it is built.

    Attributes:
        name: Name of the stage.
        settings: Its complete configuration and the origin of each value.
        expression: The methods and weights.
        data: The rows, with class ids in the order of the teacher's.
        tokenizer: Shared by all models.
        teachers: The teachers; the first is what a student without a checkpoint is made from.
        student: Shape of the student.
        student_config: Its Hugging Face configuration.
        members: The methods of the expression.
        follows: The stage whose student this one goes on with, if it does; the baseline goes on
            with what that student was before its training.
        home: Where the student is kept, if it is a task's own teacher.
    """

    name: str
    settings: ResolvedStage
    expression: Expression
    data: TaskData
    tokenizer: PreTrainedTokenizerFast
    teachers: tuple[TeacherSource, ...]
    student: ModelInfo
    student_config: PretrainedConfig
    members: tuple[Member, ...]
    follows: Blueprint | None = None
    home: TeacherHome | None = None

    @property
    def config(self) -> RunConfig:
        """The configuration of the stage."""
        return self.settings.config

    @property
    def kind(self) -> Kind:
        """What is predicted."""
        return self.data.kind

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens."""
        models = (self.student, *(teacher.info for teacher in self.teachers))
        shortest = min(info.max_length for info in models)
        return self.config.task.max_length or min(MAX_LENGTH, shortest)

    @property
    def reads_teachers(self) -> bool:
        """Whether some method reads the teachers."""
        return any(member.takes_teacher for member in self.members)

    @property
    def start(self) -> str:
        """What the student starts from, in words."""
        student, before = self.config.student, self.follows
        if before is not None:
            which = "untrained" if self.name == BASELINE else before.hands_on
            head = "" if before.kind == self.kind else ", with a fresh head"
            return f"the {which} student of stage {before.name}{head}"
        if student.model is not None:
            return f"the checkpoint {student.model}"
        if student.init == "random":
            return "random weights"
        teacher = self.teachers[0].info
        blocks = init_layers(student.init, self.student.layers, teacher.layers)
        return f"blocks {', '.join(map(str, blocks))} of {teacher.name}"

    @property
    def hands_on(self) -> str:
        """Which of its students the stage hands on: the `best` or the `last`."""
        return "best" if self.config.training.keep_best else "last"

    def origin(self, path: str) -> str:
        """Return where the value of a setting came from."""
        return str(self.settings.origin(path))


class Draughtsman:
    """Draws the blueprints of a run; data that several stages share is read once.

    Args:
        registry: What the plugins provide.
        tasks: The tasks of the run's stages.
    """

    def __init__(self, registry: Registry, tasks: Iterable[TaskConfig] = ()) -> None:
        self.registry = registry
        self._data: dict[tuple[TaskConfig, str], TaskData] = {}
        labelled = (task for task in tasks if task.kind not in ("lm", *LM_KINDS))
        self._labelled = list(dict.fromkeys(_rows(task, task.kind) for task in labelled))

    def draw(self, settings: ResolvedStage, follows: Blueprint | None = None) -> Blueprint:
        """Return the blueprint of a stage.

        Args:
            settings: Its configuration.
            follows: The stage whose student it goes on with; None to make one.

        Raises:
            GkdError: Something about the stage is wrong.
        """
        config = settings.config
        expression = parse_expression(config.method, settings.origin("method"))
        data = self._load(config, follows)
        teachers = self._teachers(settings, expression, data, follows)
        if config.task.rows is not None:
            data = replace(data, train=fewer(data.train, config.task.rows))
        start = follows.student_config if follows else _checkpoint(config)
        data = _agree_on_classes(data, [*(t.config for t in teachers), *([start] if start else [])])
        for teacher in teachers:
            check_classes(teacher.config, data.kind, data.classes, teacher.setting)
        shape = _student_shape(config, teachers, data, start)
        student = ModelInfo.read("student", shape, _width(data, shape.vocab_size))
        blueprint = Blueprint(
            name=settings.name,
            settings=settings,
            expression=expression,
            data=data,
            tokenizer=_tokenizer(config, teachers, follows),
            teachers=tuple(teachers),
            student=student,
            student_config=shape,
            members=tuple(self._members(config, expression, student, teachers)),
            follows=follows,
        )
        check_blueprint(blueprint, self.registry)
        return blueprint

    def _load(self, config: RunConfig, follows: Blueprint | None) -> TaskData:
        """Return the rows of a stage.

        Stages that share rows hold out the same of them: what one stage validates on is no text
        for another to learn from. So the rows of a labelled task are split with their labels,
        which language modelling then drops.
        """
        plain = _plain_kind(config, follows)
        kind = plain if config.task.kind == "lm" else config.task.kind
        task = config.task.model_copy(update={"kind": kind})
        self.registry.task(task_name(task))(task).check()
        for labelled in self._labelled:
            if kind in LM_KINDS and _rows(task, labelled.kind) == labelled:
                data = self._read(labelled, plain, config.seed)
                return data if data.kind == kind else without_labels(data, kind)
        return self._read(_rows(task, kind), plain, config.seed)

    def _read(self, rows: TaskConfig, plain: Kind, seed: int) -> TaskData:
        # The seed of the first stage to read them holds for all.
        key = (rows, plain)
        if key not in self._data:
            self._data[key] = self.registry.task(task_name(rows))(rows).load(plain, seed)
        return self._data[key]

    def _teachers(
        self,
        settings: ResolvedStage,
        expression: Expression,
        data: TaskData,
        follows: Blueprint | None,
    ) -> list[TeacherSource]:
        """Return the teachers if a method reads one or the student is made from one."""
        config = settings.config
        methods = [self.registry.method(member.name) for member in expression.members]
        starts = config.student.model is not None or follows is not None
        if starts and all(method.teachers == "none" for method in methods):
            return []
        return [self._teacher(teacher, settings, data, follows) for teacher in config.teachers]

    def _teacher(
        self,
        teacher: TeacherConfig,
        settings: ResolvedStage,
        data: TaskData,
        follows: Blueprint | None,
    ) -> TeacherSource:
        config = settings.config
        setting = settings.path(
            f"teachers.{teacher.name}.model" if len(config.teachers) > 1 else "teacher.model"
        )
        home = None
        model = teacher.model
        if model is None:
            home = teacher_home(
                self._own_teacher(config, data, follows, setting),
                data,
                config.task.max_length or MAX_LENGTH,
            )
            model = str(home.trained if home.ready else home.untrained)
        found = load_config(model, teacher.trust_remote_code, setting)
        info = ModelInfo.read(teacher.name, found, _width(data, found.vocab_size))
        return TeacherSource(info, setting, model, found, teacher.trust_remote_code, home)

    def _own_teacher(
        self, config: RunConfig, data: TaskData, follows: Blueprint | None, setting: str
    ) -> OwnTeacher:
        """Return the teacher that the task brings, of the family of a student that goes on."""
        task = config.task
        if follows is not None and task.own_teacher is None:
            decoder = language_model_kind(follows.student_config) == "causal-lm"
            task = task.model_copy(update={"own_teacher": "decoder" if decoder else "encoder"})
        name = task_name(task)
        own = self.registry.task(name)(task).own_teacher(data)
        if own is None:
            alone = "" if setting == "teacher.model" else f" (--set {setting}=DIR for one stage)"
            raise ConfigError(
                f"no teacher is named, and the task '{name}' brings none. Name one with "
                f"--teacher DIR{alone}, or train a student on labels alone with --method hard "
                "--student DIR"
            )
        return own

    def _members(
        self,
        config: RunConfig,
        expression: Expression,
        student: ModelInfo,
        teachers: Sequence[TeacherSource],
    ) -> Iterable[Member]:
        for member in expression.members:
            method = self.registry.method(member.name)
            alone = method.teachers == "none"
            models = [Models(student, None if alone else teacher.info) for teacher in teachers]
            models = models[:1] if alone and models else models or [Models(student, None)]
            yield Member(
                name=member.name,
                weight=member.weight,
                methods=tuple(method(config.options.get(member.name)) for _ in models),
                models=tuple(models),
                generator=torch.Generator().manual_seed(name_seed(config.seed, member.name)),
            )


def _rows(task: TaskConfig, kind: TaskKind | None) -> TaskConfig:
    """Return the settings that decide which rows are read and what is predicted from them."""
    other = ("rows", "max_length", "mask_share", "own_teacher")
    unset = {name: TaskConfig.model_fields[name].default for name in other}
    return task.model_copy(update=unset | {"kind": kind})


def _plain_kind(config: RunConfig, follows: Blueprint | None) -> Kind:
    """Return what plain text is used for: what the model at the start was made for."""
    kind = config.task.kind
    if kind is not None and kind != "lm":
        return kind
    if follows is not None:
        return language_model_kind(follows.student_config)
    own = config.student.model is not None
    named = config.student if own else config.teachers[0]
    if named.model is None:
        return "causal-lm" if config.task.own_teacher == "decoder" else "masked-lm"
    setting = "student.model" if own else "teacher.model"
    return language_model_kind(load_config(named.model, named.trust_remote_code, setting))


def _checkpoint(config: RunConfig) -> PretrainedConfig | None:
    """Return the configuration of the checkpoint that the student starts from, if one is named."""
    if config.student.model is None:
        return None
    return load_config(config.student.model, config.student.trust_remote_code, "student.model")


def _agree_on_classes(data: TaskData, models: Sequence[PretrainedConfig]) -> TaskData:
    """Give the classes the order in which the first of the models has them."""
    order = teacher_classes(models[0]) if models else None
    if data.kind != "classification" or order is None or order == data.classes:
        return data
    return order_classes(data, order) if set(order) == set(data.classes) else data


def _student_shape(
    config: RunConfig,
    teachers: Sequence[TeacherSource],
    data: TaskData,
    start: PretrainedConfig | None,
) -> PretrainedConfig:
    if start is None:
        return student_config(config.student, teachers[0].config, data.kind, data.classes)
    shape = copy.deepcopy(start)
    set_classes(shape, data.kind, data.classes)
    return shape


def _width(data: TaskData, vocabulary: int) -> int:
    """Return the width of the logits."""
    if data.kind in LM_KINDS:
        return vocabulary
    return len(data.classes) if data.kind == "classification" else 1


def _tokenizer(
    config: RunConfig, teachers: Sequence[TeacherSource], follows: Blueprint | None
) -> PreTrainedTokenizerFast:
    """Return the tokenizer that all models share, or refuse models that do not share one."""
    sources = [(t.setting, t.model, t.trust_remote_code) for t in teachers]
    if config.student.model is not None:
        own = (config.student.model, config.student.trust_remote_code)
        sources.append(("student.model", *own))
    known = [
        (f"{setting} = '{model}'", load_tokenizer(model, trust, setting))
        for setting, model, trust in sources
    ]
    if follows is not None:
        known.append((f"the student of stage '{follows.name}'", follows.tokenizer))
    (first, tokenizer), *others = known
    for name, other in others:
        difference = tokenizer_mismatch(tokenizer, other)
        if difference is not None:
            raise ConfigError(
                f"{first} and {name} have different tokenizers: {difference}. All models "
                "of a run read the same token ids; choose a student of the teacher's family"
            )
    return tokenizer
