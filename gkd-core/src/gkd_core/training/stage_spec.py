"""`StageSpec`: a stage with everything resolved but no weights loaded."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from gkd_core.kinds.task_kind import TaskKind
from gkd_core.models.layer_map import init_layers
from gkd_core.objective.ensemble import TeacherEnsemble, ensembles
from gkd_core.objective.step_plan import ActiveMethod, StepPlan, plan_step

if TYPE_CHECKING:
    from gkd_core.runs.default_teacher import DefaultTeacherStore

TEACHER = "teacher"
BASELINE = "baseline"
"""Names of the stages that gkd adds to a run."""

MAX_LENGTH = 128
"""Longest sequence in tokens, unless the configuration sets another or a model allows less."""


@dataclass(frozen=True)
class TeacherSource:
    """A teacher before it is loaded.

    Attributes:
        info: Its shape and name.
        setting: The setting that names it, such as `teacher.model`.
        model: Directory or hub id.
        config: Its Hugging Face configuration.
        trust_remote_code: Whether code from its repository may run.
        store: Where a task's default teacher is trained and kept; None for other teachers.
        stage: The stage whose student it is, for `stage:NAME`; `model` is then that student's
            directory once the stage is finished.
        tensor: Number of processes that share one copy.
        placement: Where its weights are kept between uses.
    """

    info: ModelInfo
    setting: str
    model: str
    config: PretrainedConfig
    trust_remote_code: bool
    store: DefaultTeacherStore | None = None
    stage: StageSpec | None = None
    tensor: int = 1
    placement: Placement = "replicated"

    @property
    def called(self) -> str:
        """Its name in reports: several stages may each have a teacher named `teacher`."""
        return self.info.name if self.stage is None else self.stage.name

    @property
    def trained(self) -> str:
        """The location of the trained teacher; a task's default teacher must be trained first."""
        return str(self.store.trained) if self.store else self.model


@dataclass(frozen=True)
class StageSpec:
    """A stage before it is built.

    Attributes:
        name: Name of the stage.
        settings: Its complete configuration and the origin of each value.
        expression: The methods and their weights.
        kind: The kind of task.
        data: The rows, with class ids in the teacher's order.
        tokenizer: The tokenizer, shared by all models.
        teachers: The teachers; a student without a checkpoint is made from the first.
        student: The shape of the student.
        student_config: Its Hugging Face configuration.
        members: The methods of the expression.
        follows: The stage whose student this one continues with, if any; the baseline starts from
            that student as it was before training.
        store: Where the student is kept, if it is a task's default teacher.
    """

    name: str
    settings: ResolvedStage
    expression: Expression
    kind: TaskKind
    data: TaskData
    tokenizer: PreTrainedTokenizerFast
    teachers: tuple[TeacherSource, ...]
    student: ModelInfo
    student_config: PretrainedConfig
    members: tuple[ActiveMethod, ...]
    follows: StageSpec | None = None
    store: DefaultTeacherStore | None = None

    @functools.cached_property
    def first_step(self) -> StepPlan:
        """The plan of the first step; planning it does not advance the RNG.

        Raises:
            MethodError: A path or pass does not exist, or two methods change the same place.
        """
        step = Step(0, 1, 0, self.name, torch.Generator())
        members = [member.detached_copy() for member in self.members]
        return plan_step(members, step, explain=self.naming_options)

    @contextmanager
    def naming_options(self, owner: ActiveMethod | TeacherEnsemble) -> Iterator[None]:
        """Add the options that the user set to a `MethodError` of a method or ensemble."""
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
    def max_length(self) -> int:
        """Longest sequence in tokens."""
        models = (self.student, *(teacher.info for teacher in self.teachers))
        shortest = min(info.max_length for info in models)
        return self.config.task.max_length or min(MAX_LENGTH, shortest)

    @property
    def ensembles(self) -> list[TeacherEnsemble]:
        """The ensembles of several teachers, sorted by name."""
        return ensembles(self.members)

    @property
    def reads_teachers(self) -> bool:
        """Whether a method reads the teachers, or the rollouts let one write."""
        read = bool(self.ensembles) or any(member.takes_teacher for member in self.members)
        return read or self.writes_with_teacher

    @property
    def writes_with_teacher(self) -> bool:
        """Whether the (first) teacher ever writes text."""
        return self.config.rollout is not None and self.config.rollout.uses_teacher

    @property
    def copies_teacher(self) -> bool:
        """Whether the student starts from a teacher's weights, not only from its shape."""
        made = self.follows is None and self.config.student.model is None
        return made and self.config.student.init != "random"

    @property
    def loads_teachers(self) -> bool:
        """Whether weights of the teachers are needed."""
        return self.reads_teachers or self.copies_teacher

    @property
    def layout(self) -> Layout:
        """The number of processes that share each model.

        Raises:
            ConfigError: The degrees do not fit the number of processes or each other.
        """
        parallel, read = self.config.parallel, self.teachers if self.reads_teachers else ()
        degrees = {teacher.info.name: teacher.tensor for teacher in read}
        return Layout(processes(parallel.nproc), parallel.tensor, degrees)

    @property
    def scale(self) -> float | None:
        """The share of the heads and neurons of `student` that is kept; None keeps all."""
        if self.follows is not None:
            return self.follows.scale
        return self.config.student.scale

    @property
    def start(self) -> str:
        """A description of what the student starts from."""
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
        """The names in reports of the teachers that methods read."""
        return tuple(t.called for t in self.teachers) if self.reads_teachers else ()

    @property
    def kept_student(self) -> str:
        """The student that the stage passes on: the `best` or the `last`."""
        return "best" if self.config.training.keep_best else "last"

    def origin(self, path: str) -> str:
        """Return the origin of a setting's value."""
        return str(self.settings.origin(path))


def _shown(value: Any) -> str:
    """Return ` = value`, or nothing for a list of tables: the error names the wrong one."""
    is_tables = isinstance(value, list) and any(isinstance(entry, dict) for entry in value)
    return "" if is_tables else f" = {json.dumps(value)}"
