"""`StageSpec`: a stage with everything resolved but no weights loaded."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from gkd_core.config.expression import Expression
from gkd_core.config.resolve import ResolvedStage
from gkd_core.config.schema import Placement, RunConfig
from gkd_core.config.settings import DEFAULT
from gkd_core.contract.model_info import ModelInfo, Models
from gkd_core.contract.step import Step
from gkd_core.contract.task import Split, Task, TaskData
from gkd_core.data.collate import Collator
from gkd_core.data.encode import TEXTS, Encoded
from gkd_core.data.stored_tokens import tokenized
from gkd_core.distributed.layout import Layout
from gkd_core.distributed.ranks import processes
from gkd_core.errors import DataError, MethodError, PluginError
from gkd_core.evaluation.answer_check import answer_check
from gkd_core.evaluation.samples import Sampling
from gkd_core.kinds.metrics import Metric
from gkd_core.kinds.task_kind import Evaluation, TaskKind
from gkd_core.models.layer_map import init_layers
from gkd_core.models.tokenizer import other_special_tokens
from gkd_core.named_path import named_path
from gkd_core.objective.ensemble import TeacherEnsemble, ensembles
from gkd_core.objective.step_plan import ActiveMethod, StepPlan, plan_step, sample_steps
from gkd_core.plugins.answers import mapping_of
from gkd_core.probes.choice import ProbeChoice
from gkd_core.training.augmentation import copies

if TYPE_CHECKING:
    from gkd_core.runs.default_teacher import DefaultTeacherStore
    from gkd_core.teachers.source import AnswerSource
    from gkd_core.vocabulary.reduced import ReducedVocabulary

TEACHER = "teacher"
BASELINE = "baseline"
"""Names of the stages that gkd adds to a run."""

AGREEMENT = "agreement"
"""The main metric of the kind of task, with a teacher's answers instead of labels."""


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher before it is loaded.

    Attributes:
        info: Its shape and name.
        setting: The setting that names it, such as `teacher.model`.
        model: Directory or hub id.
        config: Its Hugging Face configuration.
        trust_remote_code: Whether code from its repository may run.
        tokenizer: The tokenizer of the rows it reads; models of a stage to which the ids mean the
            same have the same object.
        store: Where a task's default teacher is trained and kept; None for other teachers.
        stage: The stage whose student it is, for `stage:NAME`; `model` is then that student's
            directory once the stage is finished.
        tensor: Number of processes that share one copy.
        placement: Where its weights are kept between uses.
        source: Where its answers come from, if not from its model.
        own_tokenizer: The tokenizer that comes with it: of the same ids as `tokenizer`, perhaps of
            other special tokens. With a `vocabulary`, the student's.
        vocabulary: The student's tokens, if it has only a part of the teacher's; the teacher then
            reads rows, and is configured, in their ids.
        is_shared: Whether other runs find what it answers (`teacher.keep`).
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
    own_tokenizer: PreTrainedTokenizerFast | None = None
    vocabulary: ReducedVocabulary | None = None
    is_shared: bool = False

    @property
    def called(self) -> str:
        """Its name in reports: several stages may each have a teacher named `teacher`."""
        return self.info.name if self.stage is None else self.stage.name

    @property
    def is_made(self) -> bool:
        """Whether gkd trains it: in a stage, or as a task's default teacher."""
        return self.stage is not None or self.store is not None

    @property
    def special_tokens(self) -> list[str]:
        """The special tokens of the model that are others in the rows it reads, as text."""
        own = self.own_tokenizer
        return [] if own is None else other_special_tokens(own, self.tokenizer)

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
        task: What the rows are from, with its metrics.
        data: The rows, with class ids in the teacher's order.
        tokenizer: The student's tokenizer.
        teachers: The teachers; a student without a checkpoint is made from the first.
        student: The shape of the student.
        student_config: Its Hugging Face configuration.
        members: The methods of the expression.
        follows: The stage whose student this one continues with, if any; the baseline starts from
            that student as it was before training.
        store: Where the student is kept, if it is a task's default teacher.
        notes: What was assumed of the rows and models, in sentences for the user to check.
        end_token: The token that ends the student's answers, if its checkpoint has another.
        probed: What probes compare with each teacher; empty without probes.
        vocabulary: The student's tokens, if they are a part of its teacher's.
    """

    name: str
    settings: ResolvedStage
    expression: Expression
    kind: TaskKind
    task: Task
    data: TaskData
    tokenizer: PreTrainedTokenizerFast
    teachers: tuple[TeacherSpec, ...]
    student: ModelInfo
    student_config: PretrainedConfig
    members: tuple[ActiveMethod, ...]
    follows: StageSpec | None = None
    store: DefaultTeacherStore | None = None
    notes: tuple[str, ...] = ()
    end_token: str | None = None
    probed: tuple[ProbeChoice, ...] = ()
    vocabulary: ReducedVocabulary | None = None

    @functools.cached_property
    def first_step(self) -> StepPlan:
        """The plan of the first step; planning it changes nothing about the methods.

        Raises:
            MethodError: A path or pass does not exist, or two methods change the same place.
        """
        step = Step(0, 1, 0, self.name, torch.Generator())
        members = [member.rehearsal_copy() for member in self.members]
        return plan_step(members, step, explain=self.naming_options)

    @functools.cached_property
    def sampled_steps(self) -> tuple[StepPlan, ...]:
        """The requests of copies of the methods, in a few steps spread over training.

        Raises:
            MethodError: A path or pass does not exist, or two methods change the same place.
        """
        return sample_steps(self.members, self.name, self.naming_options)

    @property
    def about(self) -> str:
        """The prediction target and the rows, as text."""
        number = copies(self.config, self.kind)
        added = f", with {number} augmented copies of each row" if number else ""
        return f"{self.kind} on {self.data.source}{added}"

    @property
    def needs_byte_offsets(self) -> bool:
        """Whether batches say where each token is in its text."""
        return bool(self.other_tokenizers) or any(o.methods[0].aligns for o in self.owners)

    @property
    def other_tokenizers(self) -> list[tuple[PreTrainedTokenizerFast, list[TeacherSpec]]]:
        """The tokenizers besides the student's, each with the teachers that have it."""
        found: dict[int, tuple[PreTrainedTokenizerFast, list[TeacherSpec]]] = {}
        for teacher in self.teachers if self.reads_teachers else ():
            if teacher.tokenizer is not self.tokenizer:
                found.setdefault(id(teacher.tokenizer), (teacher.tokenizer, []))[1].append(teacher)
        return list(found.values())

    def encode(
        self, split: Split, tokenizer: PreTrainedTokenizerFast, packed: bool = False
    ) -> Encoded:
        """Return rows of the task in the tokens of a tokenizer, or blocks of several of them.

        Raises:
            DataError: A model that reads them has no embedding for one of the tokens.
        """
        classes = self.data.classes
        encoded = tokenized(self.kind, split, tokenizer, self.max_length, classes, packed)
        self.check_ids(encoded, tokenizer)
        if packed or split.source is None:
            return encoded
        return self._with_sources(encoded, split.source)

    def _with_sources(self, encoded: Encoded, sources: Sequence[str]) -> Encoded:
        """Return rows with the index of the source of each, if every row is from one text."""
        names = self.data.sources
        indices = np.array([names.index(s) if s in names else -1 for s in sources], np.int64)
        texts = encoded.extra.get(TEXTS, np.arange(len(sources)))
        return replace(encoded, sources=indices[texts]) if len(texts) == len(encoded) else encoded

    def check_ids(self, encoded: Encoded, tokenizer: PreTrainedTokenizerFast) -> None:
        """Reject rows with tokens beyond the embedding of a model that reads them.

        Raises:
            DataError: They have some; the message names one.
        """
        readers = [self.student] if tokenizer is self.tokenizer else []
        readers += [one.info for one in self.teachers if one.tokenizer is tokenizer]
        largest = encoded.largest_id
        for reader in readers:
            if largest >= reader.vocab_size:
                token = tokenizer.convert_ids_to_tokens(largest)
                raise DataError(
                    f"{self.data.source} has the token {token!r} (id {largest}), but the embedding "
                    f"of the model '{reader.name}' has {reader.vocab_size} rows (ids up to "
                    f"{reader.vocab_size - 1}). Use the tokenizer the model was trained with"
                )

    def collator(self, tokenizer: PreTrainedTokenizerFast) -> Collator:
        """Return the collator of micro-batches of rows in the tokens of a tokenizer."""
        config = self.config
        return Collator(tokenizer, self.kind, config.task.mask_share, config.seed)

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

    def is_unlabeled(self, split: Split) -> bool:
        """Return whether the rows of a split could have labels, but have none."""
        return split.labels is None and not self.kind.is_lm

    @property
    def judged(self) -> tuple[str, Split]:
        """The rows by which models are judged in the end: their name, `test` or `validation`."""
        data = self.data
        if data.test is None or self.config.output.compare_on == "validation":
            return "validation", data.validation
        return "test", data.test

    @property
    def metric(self) -> Metric:
        """The metric that selects the best student."""
        return self.metric_on(self.data.validation)

    def metric_on(self, split: Split) -> Metric:
        """Return the metric that counts on a split: without labels, agreement with a teacher."""
        if self.is_unlabeled(split):
            return Metric(AGREEMENT, self.kind.metric.higher_is_better)
        return self.task.metric or self.kind.metric

    def agreement_with(self, teacher: str) -> str:
        """Return the definition of agreement with a teacher."""
        return f"{self.kind.metric.name} with the answers of {teacher} as labels"

    def measured(self, evaluation: Evaluation, split: Split) -> Evaluation:
        """Return an evaluation with the metrics of the task; without labels, only agreement.

        Args:
            evaluation: Metrics of the kind of task, and predictions. Rows without labels are
                evaluated by a teacher's answers (`answered`).
            split: The rows.

        Raises:
            PluginError: The task's main metric is not among them.
        """
        metrics = {**evaluation.metrics, **self._by_source(evaluation, split)}
        if self.is_unlabeled(split):
            agreement = metrics[self.kind.metric.name]
            return replace(evaluation, metrics={"loss": metrics["loss"], AGREEMENT: agreement})
        if evaluation.predictions is not None:
            own = self.task.measure(split, evaluation.predictions, self.data)
            metrics |= mapping_of(self.task, "measure", own, Real, "a mapping of names to numbers")
        metric = self.metric_on(split)
        if metric.name not in metrics:
            raise PluginError(
                f"the main metric of the task {self.task.name!r} is {metric.name!r}, which "
                f"{self.kind} on {self.data.source} does not have: {', '.join(metrics)}"
            )
        return replace(evaluation, metrics=metrics)

    def _by_source(self, evaluation: Evaluation, split: Split) -> dict[str, float]:
        """Return the main metric on the rows of each source, if there are several."""
        if split.source is None:
            return {}
        name, sources = self.kind.metric.name, np.array(split.source)
        measure = self.kind.remeasure(evaluation, split, self.data.classes)
        if measure is None:
            return {}
        return {
            f"{name}.{source}": measure(np.flatnonzero(sources == source))[name]
            for source in dict.fromkeys(split.source)
        }

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens."""
        return self.config.task.max_length or min(self.task.max_length, self.readable_length)

    @property
    def readable_length(self) -> int:
        """Longest sequence in tokens that all models can read."""
        models = (self.student, *(teacher.info for teacher in self.teachers))
        return min(info.max_length for info in models)

    @property
    def longest_prompt(self) -> int | None:
        """Tokens of the longest prompt that models can continue; None if none writes in steps."""
        rollout = self.config.rollout
        return None if rollout is None else self.max_length - rollout.max_new_tokens

    @property
    def ensembles(self) -> list[TeacherEnsemble]:
        """The ensembles of several teachers, sorted by name."""
        return ensembles(self.members)

    @property
    def owners(self) -> list[ActiveMethod | TeacherEnsemble]:
        """The methods and the ensembles: all that has loss terms of its own."""
        return [*self.members, *self.ensembles]

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
    def is_written(self) -> bool:
        """Whether the (first) teacher writes the answers to all prompts before the first step."""
        return self.config.writing is not None

    @property
    def sampling(self) -> Sampling | None:
        """The number of answers that models write at evaluations; None if none are requested.

        Raises:
            ConfigError: What checks them is no function or regular expression (`task.check`).
        """
        samples, check = self.config.samples, self.config.task.check
        if samples is None:
            return None
        checked = None if check is None else answer_check(check)
        return Sampling(samples.rows, samples.new_tokens, checked)

    @property
    def taught(self) -> list[Models]:
        """The shapes of the student and each teacher."""
        return [Models(self.student, teacher.info, self.data.kind) for teacher in self.teachers]

    @property
    def live_teachers(self) -> tuple[TeacherSpec, ...]:
        """The teachers whose models run in a step."""
        read = self.teachers if self.reads_teachers else ()
        return tuple(teacher for teacher in read if teacher.source is None)

    @property
    def copies_teacher(self) -> bool:
        """Whether the student starts from a teacher's weights, not only from its shape."""
        made = self.follows is None and self.config.student.model is None
        return made and self.config.student.init != "random"

    @property
    def is_whole_teacher(self) -> bool:
        """Whether the student starts as a copy of the (first) teacher, of the same size."""
        student, layers = self.config.student, self.student.layers
        if not self.copies_teacher or student.slice is not None:
            return False
        if student.init == "none" or student.init == "random":
            return False
        teacher = self.teachers[0]
        blocks = init_layers(student.init, layers, teacher.info.layers)
        same = replace(self.student, name=teacher.info.name) == teacher.info
        return same and blocks == [*range(1, layers + 1)]

    @property
    def shares_weights(self) -> bool:
        """Whether the frozen weights of a student with adapters are those of the (first) teacher.

        They are if it starts from the same model, and if both have them in the same place.
        """
        config = self.config
        if config.student.lora is None or self.follows is not None or not self.live_teachers:
            return False
        teacher, settings = self.teachers[0], config.teachers[0]
        if teacher.source is not None or teacher.tensor > 1 or config.parallel.zero == 3:
            return False
        if teacher.placement != "replicated" or settings.dtype != "fp32":
            return False
        model = config.student.model
        return self.is_whole_teacher if model is None else _is_same(model, teacher.trained)

    @property
    def loads_teachers(self) -> bool:
        """Whether weights of the teachers are needed."""
        return self.reads_teachers or self.copies_teacher or self.is_written

    @property
    def trusts_student(self) -> bool:
        """Whether code that comes with the student may run: its checkpoint's, or its teacher's."""
        if self.follows is not None:
            return self.follows.trusts_student
        if self.config.student.model is not None:
            return self.config.student.trust_remote_code
        return self.teachers[0].trust_remote_code

    def reads_weights(self, number: int) -> bool:
        """Return whether the weights of a teacher are needed."""
        is_live = self.teachers[number].source is None
        writes = number == 0 and self.is_written
        reads = is_live and (self.reads_teachers or writes)
        return reads or (number == 0 and self.copies_teacher)

    @property
    def layout(self) -> Layout:
        """The number of processes that share each model.

        Raises:
            ConfigError: The degrees do not fit the number of processes or each other.
        """
        parallel = self.config.parallel
        degrees = {teacher.info.name: teacher.tensor for teacher in self.live_teachers}
        return Layout(processes(parallel.nproc), parallel.tensor, degrees)

    @property
    def scale(self) -> float | None:
        """The share of the heads and neurons of `student` that is kept; None keeps all."""
        if self.follows is not None:
            return self.follows.scale
        return self.config.student.slice

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
        part = "" if self.scale is None else f", {self.scale:g} of their heads and neurons"
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


def _is_same(model: str, other: str) -> bool:
    """Return whether two names are of one model: of a directory, or of the hub."""
    place = named_path(model)
    return model == other or (place.is_dir() and place.resolve() == named_path(other).resolve())


def _shown(value: Any) -> str:
    """Return ` = value`, or nothing for a list of tables: the error names the wrong one."""
    is_tables = isinstance(value, list) and any(isinstance(entry, dict) for entry in value)
    return "" if is_tables else f" = {json.dumps(value)}"
