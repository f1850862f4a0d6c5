"""`StageSpec`: a stage thought through before any weight is loaded."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from gkd_core.config.expression import Expression
from gkd_core.config.resolve import ResolvedStage
from gkd_core.config.schema import Placement, RunConfig
from gkd_core.config.settings import DEFAULT
from gkd_core.contract.model_info import ModelInfo
from gkd_core.contract.step import Step
from gkd_core.contract.task import TaskData
from gkd_core.distributed.layout import Layout
from gkd_core.distributed.ranks import processes
from gkd_core.errors import MethodError
from gkd_core.kinds.kind import Kind
from gkd_core.models.layer_map import init_layers
from gkd_core.objective.ensemble import TeacherEnsemble, ensembles
from gkd_core.objective.step_plan import ActiveMethod, StepPlan, plan_step

if TYPE_CHECKING:
    from gkd_core.runs.default_teacher import DefaultTeacherStore
    from gkd_core.teachers.source import AnswerSource

TEACHER = "teacher"
BASELINE = "baseline"
"""Names of the stages that gkd adds to a run."""

SAMPLED = 16
"""Steps in which methods are asked what they will read, before a stage begins."""

MAX_LENGTH = 128
"""Longest sequence in tokens where neither the configuration nor a model says less."""


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher before it is loaded.

    Attributes:
        info: Its shape and name.
        setting: What named it, such as `teacher.model`.
        model: Directory or hub id.
        config: Its Hugging Face configuration.
        trust_remote_code: Whether code that comes with it may run.
        tokenizer: Its tokenizer; the same object as that of every model of the stage whose equals
            it.
        store: Where it is to be trained first, for a task's default teacher.
        stage: The stage whose student it is, for `stage:NAME`; `model` is then its directory once
            that stage is finished.
        tensor: Processes that share one copy of it.
        placement: Where its weights are until they are used.
        source: Where its answers come from, if not from its model.
    """

    info: ModelInfo
    setting: str
    model: str
    config: PretrainedConfig
    trust_remote_code: bool
    tokenizer: PreTrainedTokenizerFast
    store: DefaultTeacherStore | None = None
    stage: StageSpec | None = None
    tensor: int = 1
    placement: Placement = "replicated"
    source: AnswerSource | None = None

    @property
    def called(self) -> str:
        """What reports call it: several stages may each have a `teacher`."""
        return self.info.name if self.stage is None else self.stage.name

    @property
    def trained(self) -> str:
        """Where the trained teacher is; for a task's default teacher once it is trained."""
        return str(self.store.trained) if self.store else self.model


@dataclass(frozen=True)
class StageSpec:
    """A stage before it is built.

    Attributes:
        name: Name of the stage.
        settings: Its complete configuration and the origin of each value.
        expression: The methods and weights.
        data: The rows, with class ids in the order of the teacher's.
        tokenizer: The student's.
        teachers: The teachers; the first is what a student without a checkpoint is made from.
        student: Shape of the student.
        student_config: Its Hugging Face configuration.
        members: The methods of the expression.
        follows: The stage whose student this one goes on with, if it does; the baseline goes on
            with what that student was before its training.
        store: Where the student is kept, if it is a task's default teacher.
    """

    name: str
    settings: ResolvedStage
    expression: Expression
    data: TaskData
    tokenizer: PreTrainedTokenizerFast
    teachers: tuple[TeacherSpec, ...]
    student: ModelInfo
    student_config: PretrainedConfig
    members: tuple[ActiveMethod, ...]
    follows: StageSpec | None = None
    store: DefaultTeacherStore | None = None

    @functools.cached_property
    def first_step(self) -> StepPlan:
        """What the methods ask for in the first step; asking advances no random generator.

        Raises:
            MethodError: A path or pass does not exist, or two methods change the same place.
        """
        step = Step(0, 1, 0, self.name, torch.Generator())
        members = [member.detached_copy() for member in self.members]
        return plan_step(members, step, explain=self.naming_options)

    @functools.cached_property
    def sampled_steps(self) -> tuple[StepPlan, ...]:
        """What copies of the methods ask for in the course of training, in a few steps of it.

        Raises:
            MethodError: A path or pass does not exist, or two methods change the same place.
        """
        members = [
            replace(member.detached_copy(), methods=copy.deepcopy(member.methods))
            for member in self.members
        ]
        steps = (
            Step(index, SAMPLED, index, self.name, torch.Generator()) for index in range(SAMPLED)
        )
        return tuple(plan_step(members, step, explain=self.naming_options) for step in steps)

    @property
    def needs_byte_offsets(self) -> bool:
        """Whether batches say where each token is in its text."""
        owners: list[ActiveMethod | TeacherEnsemble] = [*self.members, *self.ensembles]
        return bool(self.other_tokenizers) or any(owner.methods[0].aligns for owner in owners)

    @property
    def other_tokenizers(self) -> list[tuple[PreTrainedTokenizerFast, list[TeacherSpec]]]:
        """The tokenizers besides the student's, each with the teachers that have it."""
        found: dict[int, tuple[PreTrainedTokenizerFast, list[TeacherSpec]]] = {}
        for teacher in self.teachers if self.reads_teachers else ():
            if teacher.tokenizer is not self.tokenizer:
                found.setdefault(id(teacher.tokenizer), (teacher.tokenizer, []))[1].append(teacher)
        return list(found.values())

    @contextmanager
    def naming_options(self, owner: ActiveMethod | TeacherEnsemble) -> Iterator[None]:
        """Let the `MethodError` of a method or ensemble name the options that a person gave."""
        try:
            yield
        except MethodError as error:
            values = owner.methods[0].config.model_dump(mode="json")
            origins = {name: self.origin(f"{owner.name}.{name}") for name in values}
            given = [
                f"{owner.name}.{name}{_shown(values[name])} ({origin})"
                for name, origin in origins.items()
                if origin != str(DEFAULT)
            ]
            said = f"{'. Given is ' if given else ''}{', '.join(given)}"
            raise MethodError(f"{error}{said}") from error

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
    def ensembles(self) -> list[TeacherEnsemble]:
        """What combines several teachers, by name."""
        return ensembles(self.members)

    @property
    def reads_teachers(self) -> bool:
        """Whether some method reads the teachers."""
        return bool(self.ensembles) or any(member.takes_teacher for member in self.members)

    @property
    def live_teachers(self) -> tuple[TeacherSpec, ...]:
        """The teachers whose models run in a step."""
        read = self.teachers if self.reads_teachers else ()
        return tuple(teacher for teacher in read if teacher.source is None)

    @property
    def copies_teacher(self) -> bool:
        """Whether the student starts from weights of a teacher, and not from its shape alone."""
        made = self.follows is None and self.config.student.model is None
        return made and self.config.student.init != "random"

    @property
    def loads_teachers(self) -> bool:
        """Whether weights of the teachers are needed."""
        return self.reads_teachers or self.copies_teacher

    def reads_weights(self, number: int) -> bool:
        """Return whether the weights of a teacher are needed."""
        is_live = self.teachers[number].source is None
        return (is_live and self.reads_teachers) or (number == 0 and self.copies_teacher)

    @property
    def layout(self) -> Layout:
        """How many processes share each model.

        Raises:
            ConfigError: The degrees do not fit the number of processes, or each other.
        """
        parallel = self.config.parallel
        degrees = {teacher.info.name: teacher.tensor for teacher in self.live_teachers}
        return Layout(processes(parallel.nproc), parallel.tensor, degrees)

    @property
    def scale(self) -> float | None:
        """Share of the heads and neurons that the student keeps of `student`; None for all."""
        if self.follows is not None:
            return self.follows.scale
        return self.config.student.scale

    @property
    def start(self) -> str:
        """What the student starts from, in words."""
        student, before = self.config.student, self.follows
        if before is not None:
            which = "untrained" if self.name == BASELINE else before.kept_student
            head = "" if before.kind == self.kind else ", with a fresh head"
            return f"the {which} student of stage {before.name}{head}"
        if student.model is not None:
            return f"the checkpoint {student.model}"
        if student.init == "random":
            return "random weights"
        teacher = self.teachers[0]
        if student.init == "none":
            return f"fresh blocks between the embedding and the head of {teacher.called}"
        blocks = init_layers(student.init, self.student.layers, teacher.info.layers)
        part = "" if student.scale is None else f", {student.scale:g} of their heads and neurons"
        return f"blocks {', '.join(map(str, blocks))} of {teacher.called}{part}"

    @property
    def taught_by(self) -> tuple[str, ...]:
        """What reports call the teachers that methods read."""
        return tuple(t.called for t in self.teachers) if self.reads_teachers else ()

    @property
    def kept_student(self) -> str:
        """Which of its students the stage hands on: the `best` or the `last`."""
        return "best" if self.config.training.keep_best else "last"

    def origin(self, path: str) -> str:
        """Return where the value of a setting came from."""
        return str(self.settings.origin(path))


def _shown(value: Any) -> str:
    """Return ` = value`; nothing for a list of tables, of which the refusal names the one."""
    is_tables = isinstance(value, list) and any(isinstance(entry, dict) for entry in value)
    return "" if is_tables else f" = {json.dumps(value)}"
