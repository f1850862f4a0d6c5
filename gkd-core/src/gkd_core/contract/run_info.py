"""`RunInfo` and `StageInfo`: a run and a stage as hooks see them, read-only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from gkd_core.config.schema import RunConfig
    from gkd_core.contract.model_info import ModelInfo
    from gkd_core.kinds.kind import Kind
    from gkd_core.runs.outline import RunOutline
    from gkd_core.runs.result import StageResult


@dataclass(frozen=True)
class RunInfo:
    """A run.

    Attributes:
        directory: Its directory.
        config: Its configuration.
        methods: The methods of its stages, as in `distilbert then hard`.
        outline: Its stages, with passes, captured tensors and weights.
        results: How each finished stage ended, by name.
        say: Prints a line and adds it to the log, in the first process only.
    """

    directory: Path
    config: RunConfig
    methods: str
    outline: RunOutline
    results: Mapping[str, StageResult]
    say: Callable[[str], None] = field(repr=False)


@dataclass(frozen=True)
class StageInfo:
    """A stage whose models are built.

    Attributes:
        name: Its name.
        directory: Where its checkpoints are. Safetensors files last until the stage is finished,
            others are kept, and copied where another run reuses the stage.
        config: Its configuration.
        kind: The kind of its task.
        methods: Names of its methods.
        student: Shape of the student.
        teachers: Shapes of the teachers that methods read.
        total_steps: Its optimizer steps.
        metric: Name of the metric that the best student is chosen by.
    """

    name: str
    directory: Path
    config: RunConfig
    kind: Kind
    methods: tuple[str, ...]
    student: ModelInfo
    teachers: tuple[ModelInfo, ...]
    total_steps: int
    metric: str
    _stage: object = field(repr=False, compare=False)
