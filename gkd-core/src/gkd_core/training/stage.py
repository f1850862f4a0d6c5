"""`Stage`: a `StageSpec` with its weights loaded, ready to train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gkd_core.config.schema import RunConfig
from gkd_core.contract.batch import Batch
from gkd_core.contract.optimizer import OptimizerFactory
from gkd_core.contract.step import Step
from gkd_core.contract.task import Split
from gkd_core.data.collate import Collator
from gkd_core.data.encode import Encoded
from gkd_core.data.mapped_memory import parts_of
from gkd_core.data.other_prompts import OtherPrompts
from gkd_core.data.readings import Reading
from gkd_core.data.sampler import Sampler
from gkd_core.distributed.data_parallel import max_over_ranks
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.feature_offload import FeatureOffload
from gkd_core.kinds.metrics import Metric
from gkd_core.kinds.task_kind import TaskKind
from gkd_core.lease import Lease
from gkd_core.objective.objective import Objective
from gkd_core.optim.engine import Engine
from gkd_core.probes.probes import Probes
from gkd_core.rollouts.rollouts import Rollouts
from gkd_core.students.build import Student
from gkd_core.teachers.kept import KeptAnswers
from gkd_core.teachers.teacher import Teacher
from gkd_core.training.checkpoint import BEST
from gkd_core.training.manifest import Manifest
from gkd_core.training.sample_answers import SampleAnswers
from gkd_core.training.stage_spec import StageSpec
from gkd_core.training.step_start import StepStart


@dataclass
class Stage:
    """A stage of a run, ready to train.

    Attributes:
        name: Its name.
        spec: The spec it was built from.
        directory: The directory of its checkpoints.
        origin: The student as built, with a summary of where it came from.
        student: The student and its hooks.
        teachers: The teachers, in the order of the configuration.
        objective: The objective that is minimized.
        engine: The engine that runs forward, backward and optimizer steps.
        optimizer: Makes the optimizer.
        feature_offload: Host memory for the features of several teachers; None if not used.
        train: Training rows as token ids.
        validation: Validation rows as token ids.
        judged_rows: Validation rows; without labels of their own, they have a teacher's answers.
        collator: Makes batches of rows.
        sampler: Determines the order of the training rows.
        total_steps: Optimizer steps of the stage.
        readings: Training rows in the tokens of teachers with other tokenizers.
        rollouts: Writes text in place of rows' own; None if nothing does.
        begun: What the step that is being computed began with; None once it changes the weights.
        manifest: What determines the student; it is written with every checkpoint.
        probes: Measures distances to the teachers; None if nobody asked for them.
        lease: The lease of the run directory; the first rank has it.
        kept: Tensors of teachers for all training rows, by the number of the teacher.
        other_prompts: What teachers are asked in the place of the rows' prompts.
        samples: Lets models write answers at evaluations; None if nobody asked for them.
    """

    name: str
    spec: StageSpec
    directory: Path
    origin: Student
    student: Extractor
    teachers: Sequence[Teacher]
    objective: Objective
    engine: Engine
    optimizer: OptimizerFactory
    feature_offload: FeatureOffload | None
    train: Encoded
    validation: Encoded
    judged_rows: Split
    collator: Collator
    sampler: Sampler
    total_steps: int
    readings: Sequence[Reading] = ()
    rollouts: Rollouts | None = None
    begun: StepStart | None = None
    manifest: Manifest = field(default_factory=Manifest)
    probes: Probes | None = None
    lease: Lease | None = None
    kept: Mapping[int, KeptAnswers] = field(default_factory=dict)
    other_prompts: Sequence[OtherPrompts] = ()
    samples: SampleAnswers | None = None

    def check_lease(self) -> None:
        """Make sure that the run directory may still be written.

        Raises:
            LeaseLost: Another process has taken it.
        """
        if self.lease is not None:
            self.lease.check()

    @property
    def config(self) -> RunConfig:
        """The configuration of the stage."""
        return self.spec.config

    @property
    def kind(self) -> TaskKind:
        """The kind of task."""
        return self.spec.kind

    @property
    def live_teachers(self) -> Sequence[Extractor]:
        """The teachers whose models run."""
        return [teacher for teacher in self.teachers if isinstance(teacher, Extractor)]

    def live(self, number: int) -> Extractor:
        """Return a teacher whose model runs, by its number."""
        teacher = self.teachers[number]
        assert isinstance(teacher, Extractor), "its answers come from a source"
        return teacher

    @property
    def kept_teachers(self) -> list[str]:
        """The names of the teachers whose answers are kept."""
        return [self.spec.teachers[number].info.name for number in self.kept]

    @property
    def metric(self) -> Metric:
        """The metric by which the best student is chosen."""
        return self.spec.metric

    @property
    def best(self) -> Path:
        """The file with the weights of the best student so far."""
        return self.directory / BEST

    @property
    def evaluate_every(self) -> int:
        """The number of steps between evaluations."""
        return self.config.training.evaluate_every or self.sampler.steps_per_epoch

    @property
    def checkpoint_every(self) -> int:
        """The number of steps between checkpoints."""
        return self.config.training.checkpoint_every or self.evaluate_every

    def describe(self) -> list[str]:
        """Return lines that describe the task, the student and the rows it learns from."""
        rows = f"{len(self.train):,} to train on, {len(self.validation):,} to validate"
        facts = [("task", self.spec.about), *(("", note) for note in self.spec.notes)]
        facts += [
            *self.origin.summary,
            ("rows", rows),
            *self._cut(),
            *self._learned(),
            *self._judge(),
        ]
        for reading in self.readings:
            cut = reading.encoded.cut
            limit = f"; cut: {cut}" if cut else ""
            facts.append(("tokens", f"{', '.join(reading.models)}: another tokenizer{limit}"))
        facts += [("probe", line) for line in (self.probes.describe() if self.probes else ())]
        for teacher in self.spec.live_teachers:
            if teacher.special_tokens:
                other = ", ".join(teacher.special_tokens)
                facts.append(("tokens", f"{teacher.info.name}: the student's ids; its {other}"))
        width = max(len(name) for name, _ in facts)
        return [f"{name:<{width}}  {value}" for name, value in facts]

    def _cut(self) -> Iterator[tuple[str, str]]:
        """Yield how many of the texts to train on are too long or left out, if any are."""
        if cut := self.train.cut:
            yield "", f"cut at {self.spec.max_length} tokens (task.max_length): {cut}"
        if out := self.train.num_left_out:
            yield "", f"left out: {out:,} without an answer"
        if long := self.train.num_long_prompts:
            limit = f"{self.spec.longest_prompt} tokens (task.max_length - rollout.max_new_tokens)"
            yield "", f"left out: {long:,} with a prompt of more than {limit}"

    def _learned(self) -> Iterator[tuple[str, str]]:
        """Yield how many tokens are learned, if not all are."""
        packed = self.train.num_packed
        if packed:
            full = len(self.train.ids) / (len(self.train) * self.spec.max_length)
            yield "", f"{packed:,} packed into {len(self.train):,} blocks, {full:.0%} full"
        learned = self.train.learned
        if learned is not None:
            count = sum(np.count_nonzero(part) for part in parts_of(learned))
            counted = f"{count:,} of {len(learned):,} tokens are learned"
            longest = int(self.train.lengths.max())
            yield "", f"{counted} ({count / len(learned):.0%}); the longest row has {longest:,}"

    def _judge(self) -> Iterator[tuple[str, str]]:
        """Yield how students are judged, if not by labels."""
        spec = self.spec
        if spec.is_unlabeled(spec.data.validation):
            teacher = spec.live_teachers[0].called
            reason = "the rows to validate have no labels (task.label names their column)"
            yield "judge", f"{spec.agreement_with(teacher)}: {reason}"

    def rollout(self, batches: Sequence[Batch], step: Step) -> Sequence[Batch]:
        """Return the micro-batches of a step, with the text that models write in it.

        Teachers with prompts of their own read the same text behind these.
        """
        written = batches if self.rollouts is None else self.rollouts.apply(batches, step)
        for prompts in self.other_prompts:
            widths = max_over_ranks(map(prompts.longest, written))
            written = [
                replace(batch, views={**batch.views, prompts.teacher: prompts.view(batch, width)})
                for batch, width in zip(written, widths, strict=True)
            ]
        return written

    def due(self, step: int, every: int) -> bool:
        """Return whether `step` is a multiple of `every` or the last step."""
        return step % every == 0 or step == self.total_steps
