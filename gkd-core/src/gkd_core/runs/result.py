"""How a stage ended, kept in its directory so that a resumed run does not train it again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from gkd_core.runs.fingerprint import StageKey


@dataclass(frozen=True)
class StageResult:
    """How a stage ended.

    Attributes:
        name: Name of the stage.
        student: Directory of its student.
        steps: Optimizer steps done.
        metric: Name of the metric the student was chosen by.
        best: Its best value on the validation rows.
        best_step: Step it was reached at.
        seconds: Time the stage took, since it was begun or last resumed.
        key: What decided the student; None where that was not asked for.
        reused: Directory of the run that trained it, if that was another.
    """

    name: str
    student: str
    steps: int
    metric: str
    best: float | None
    best_step: int
    seconds: float
    key: StageKey | None = None
    reused: str = ""

    def save(self, path: Path) -> None:
        """Write the result as JSON."""
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(asdict(self), indent=1))
        os.replace(draft, path)

    @classmethod
    def load(cls, path: Path) -> StageResult:
        """Read what `save` wrote."""
        content = json.loads(path.read_text())
        key = content.pop("key", None)
        return cls(**content, key=None if key is None else StageKey(**key))
