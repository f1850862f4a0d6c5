"""`RunInfo` and `StageInfo`: read-only views of a run and a stage, for hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from gkd_core.config.schema import RunConfig
    from gkd_core.contract.model_info import ModelInfo
    from gkd_core.runs.outline import RunOutline
    from gkd_core.runs.result import StageResult


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


@dataclass(frozen=True)
class StageInfo:
    """A read-only view of a stage whose models are built, which hooks receive.

    Attributes:
        name: Name of the stage.
        directory: Directory of its checkpoints. Safetensors files are deleted when the stage is
            finished; others are kept, and copied when another run reuses the stage.
        config: The resolved configuration of the stage.
        kind: Name of its kind of task.
        methods: Names of its methods.
        student: Shape of the student.
        teachers: Shapes of the teachers that methods read.
        total_steps: Number of optimizer steps.
        metric: Name of the validation metric that selects the best student.
    """

    name: str
    directory: Path
    config: RunConfig
    kind: str
    methods: tuple[str, ...]
    student: ModelInfo
    teachers: tuple[ModelInfo, ...]
    total_steps: int
    metric: str
    _stage: object = field(repr=False, compare=False)
