"""`LiveStageInfo`: what methods and hooks may do with a stage whose models are built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gkd_core.contract.batch import Batch, ItemKind
from gkd_core.contract.run_info import GradientEngine, LoadedModel, Modules, StageInfo
from gkd_core.data.loader import iterate
from gkd_core.distributed.groups import data_rank
from gkd_core.errors import ConfigError, GkdError
from gkd_core.evaluation.evaluate import Predict, evaluate
from gkd_core.hooks.forward import Change
from gkd_core.hooks.paths import WRITABLE_SITES, parse_path
from gkd_core.models.parts import Part, Parts, find_parts
from gkd_core.objective.objective import name_seed
from gkd_core.optim.engine import LocalEngine, count_items
from gkd_core.optim.groups import ChosenOptimizer
from gkd_core.students.importance import Importance, measure_importance
from gkd_core.teachers.teacher import SourcedTeacher
from gkd_core.training.calibration import calibration_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from gkd_core.training.stage import Stage


@dataclass(frozen=True)
class LiveStageInfo(StageInfo):
    """A stage in this process."""

    _stage: Stage = field(repr=False, compare=False)

    @classmethod
    def of(cls, stage: Stage, say: Callable[[str], None]) -> LiveStageInfo:
        """Return the view of a stage.

        Args:
            stage: The stage.
            say: Prints a line.
        """
        spec = stage.spec
        return cls(
            name=stage.name,
            directory=stage.directory,
            config=stage.config,
            kind=stage.kind.name,
            methods=tuple(member.name for member in spec.members),
            student=spec.student,
            teachers=tuple(t.info for t in spec.teachers) if spec.reads_teachers else (),
            foreign_tokens=tuple(
                teacher.info.name for _, each in spec.other_tokenizers for teacher in each
            ),
            total_steps=stage.total_steps,
            metric=stage.metric.name,
            higher_is_better=stage.metric.higher_is_better,
            say=say,
            _stage=stage,
        )

    @property
    def device(self) -> torch.device:
        """Device of the models."""
        return self._stage.engine.device

    @property
    def loaded_student(self) -> LoadedModel:
        """The student in this process."""
        return self._stage.student

    @property
    def loaded_teachers(self) -> Sequence[LoadedModel]:
        """The teachers whose models run in this process."""
        return self._stage.live_teachers

    def evaluate_student(
        self, replaced: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({})
    ) -> Mapping[str, float]:
        """Return the metrics of the student on the validation rows."""
        stage = self._stage
        changes = [
            Change(place, apply)
            for path, apply in replaced.items()
            for place in parse_path(path, stage.name, WRITABLE_SITES).resolve(
                self.student, stage.name
            )
        ]
        student = stage.student
        return self._metrics(student.model, lambda batch: student.predict(batch.inputs, changes))

    def evaluate_teacher(self, number: int) -> Mapping[str, float]:
        """Return the metrics of a teacher on the validation rows."""
        teacher, source = self._stage.teachers[number], self._stage.spec.teachers[number]
        if isinstance(teacher, SourcedTeacher):
            raise ConfigError(
                f"teacher {source.info.name} cannot be evaluated: its answers come from "
                f"teacher.source = {teacher.source.name!r}, not from a model in this process"
            )
        return self._metrics(teacher.model, tokenizer=source.tokenizer)

    def _metrics(
        self,
        model: PreTrainedModel,
        predict: Predict | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> Mapping[str, float]:
        stage, spec = self._stage, self._stage.spec
        rows, collator = stage.validation, stage.collator
        if tokenizer is not None and tokenizer is not spec.tokenizer:
            rows = spec.encode(stage.judged_rows, tokenizer)
            collator = spec.collator(tokenizer)
        found = evaluate(model, rows, collator, spec.kind, self.device, predict)
        return stage.spec.measured(found, stage.spec.data.validation).metrics

    def measure_importance(self, rows: int) -> Importance:
        """Measure the importance of the student's heads and neurons."""
        stage = self._stage
        return measure_importance(stage.student, calibration_batches(stage.spec, rows), self.device)

    def _parts(self) -> Parts:
        """Return the weights of all loaded models by part."""
        found: dict[Part, list[nn.Parameter]] = {}
        for model in (self.loaded_student, *self.loaded_teachers):
            for part, weights in find_parts(model.sites).items():
                found.setdefault(part, []).extend(weights)
        return found

    def train(
        self,
        modules: Modules,
        accumulate: Callable[[GradientEngine, Modules, Batch, Mapping[ItemKind, int]], None],
        epochs: int,
        name: str,
    ) -> None:
        """Train other weights than the student's on the training rows."""
        stage = self._stage
        total = epochs * stage.sampler.steps_per_epoch
        with seeded(name_seed(self.config.seed, f"{name} {data_rank()}"), self.device):
            chosen = ChosenOptimizer(stage.optimizer, self._parts())
            engine = LocalEngine([modules], self.config.training, total, self.device, chosen=chosen)
            steps = iterate(stage.train, stage.collator, stage.sampler, 0, total)
            for index, (_, batches) in enumerate(steps):
                counts = count_items(batches)
                for batch in batches:
                    accumulate(engine, modules, batch.to(self.device), counts)
                engine.step(index)
        if engine.halted or (engine.scale is not None and engine.scale.skipped == total):
            which = "a step" if engine.halted else "every step"
            raise GkdError(
                f"the training of {name} failed: the gradient is not finite in {which}, with "
                f"training.precision = '{self.config.training.precision}'"
            )


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random generators inside the context, and restore their states after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
