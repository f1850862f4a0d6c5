"""`RunInfo` and `StageInfo`: a run and a stage, as hooks and methods see them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from gkd_core.config.schema import RunConfig
    from gkd_core.contract.batch import Batch, ItemKind
    from gkd_core.contract.model_info import ModelInfo
    from gkd_core.models.sites import Sites
    from gkd_core.runs.outline import RunOutline
    from gkd_core.runs.result import StageResult
    from gkd_core.students.importance import Importance

Modules = TypeVar("Modules", bound="nn.Module")

STAGES = "stages"
"""Directory of the stages in the directory of a run."""


@dataclass(frozen=True)
class RunInfo:
    """A read-only view of a run, which hooks receive.

    Attributes:
        directory: The run directory. Files belong here, written by the first process only
            (`is_first`).
        config: The resolved configuration.
        methods: The methods of its stages, as in `distilbert then hard`.
        outline: Its stages, with passes, captured tensors and weights.
        results: The results of the stages that are finished, by stage name.
        say: Prints a line and adds it to the log, in the first process only.
    """

    directory: Path
    config: RunConfig
    methods: str
    outline: RunOutline
    results: Mapping[str, StageResult]
    say: Callable[[str], None] = field(repr=False)

    def stage_directory(self, name: str) -> Path:
        """Return the directory of a stage (`StageInfo.directory`)."""
        return self.directory / STAGES / name


class LoadedModel(Protocol):
    """A model of a stage with its weights, or this process's shard of it.

    Attributes:
        model: The Hugging Face model.
        sites: Its blocks, attention and head.
    """

    @property
    def model(self) -> PreTrainedModel:
        """The Hugging Face model."""

    @property
    def sites(self) -> Sites:
        """Its blocks, attention and head."""


class GradientEngine(Protocol):
    """Accumulates the gradients of losses; see `StageInfo.train`."""

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        """Compute the loss of a micro-batch in the precision of the stage, and return it."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a loss."""


@dataclass(frozen=True)
class StageInfo(ABC):
    """A stage whose models are built, as hooks and methods see it.

    Attributes:
        name: Name of the stage.
        directory: Directory of its checkpoints. Safetensors files are deleted when the stage is
            finished; others are kept, and copied when another run reuses the stage.
        config: The resolved configuration of the stage.
        kind: Name of its kind of task.
        methods: Names of its methods.
        student: Shape of the student.
        teachers: Shapes of the teachers that methods read.
        foreign_tokens: Names of the teachers whose tokenizer is not the student's.
        total_steps: Number of optimizer steps.
        metric: Name of the validation metric that selects the best student.
        higher_is_better: Whether larger values of this metric are better.
        say: Prints a line and adds it to the log, in the first process only.
    """

    name: str
    directory: Path
    config: RunConfig
    kind: str
    methods: tuple[str, ...]
    student: ModelInfo
    teachers: tuple[ModelInfo, ...]
    foreign_tokens: tuple[str, ...]
    total_steps: int
    metric: str
    higher_is_better: bool
    say: Callable[[str], None] = field(repr=False, compare=False)

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the models."""

    @property
    @abstractmethod
    def loaded_student(self) -> LoadedModel:
        """The student in this process."""

    @property
    @abstractmethod
    def loaded_teachers(self) -> Sequence[LoadedModel]:
        """The teachers whose models run in this process, in the order of `teachers`."""

    @abstractmethod
    def evaluate_student(
        self, replaced: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({})
    ) -> Mapping[str, float]:
        """Return the metrics of the student on the validation rows; every rank must call it.

        Args:
            replaced: Functions that are applied to its tensors meanwhile, by path, such as
                `student.context[1]`.
        """

    @abstractmethod
    def evaluate_teacher(self, number: int) -> Mapping[str, float]:
        """Return the metrics of a teacher on the validation rows; every rank must call it.

        Args:
            number: Index of the teacher in `teachers`.

        Raises:
            ConfigError: Its answers come from another source than a model in this process.
        """

    @abstractmethod
    def measure_importance(self, rows: int) -> Importance:
        """Measure the importance of the student's heads and neurons; see `measure_importance`.

        Args:
            rows: Number of training rows, taken evenly from the classes.
        """

    @abstractmethod
    def train(
        self,
        modules: Modules,
        accumulate: Callable[[GradientEngine, Modules, Batch, Mapping[ItemKind, int]], None],
        epochs: int,
        name: str,
    ) -> None:
        """Train weights other than the student's on the training rows; every rank must call it.

        The batches, the optimizer and its settings are the stage's. Random draws, such as those of
        dropout, depend on the seed and `name` only, and do not change those of the stage.

        Args:
            modules: The weights, on the device of the stage.
            accumulate: Called with an engine, `modules`, a micro-batch and the number of items in
                the optimizer step; computes losses and accumulates their gradients.
            epochs: Passes over the training rows.
            name: Seeds the random draws.
        """
