"""How a stage ended, kept in its directory so that a resumed run does not train it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gkd_core.atomic import write_file
from gkd_core.runs.fingerprint import StageFingerprint


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
        fingerprint: What determined the student; None without `output.reuse`.
        reused: Directory of the run that trained it, if that was another.
    """

    name: str
    student: str
    steps: int
    metric: str
    best: float | None
    best_step: int
    seconds: float
    fingerprint: StageFingerprint | None = None
    reused: str = ""

    def save(self, path: Path) -> None:
        """Write the result as JSON."""
        write_file(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> StageResult:
        """Read what `save` wrote."""
        content = json.loads(path.read_text())
        if "key" in content:  # its name in version 0.1
            content["fingerprint"] = content.pop("key")
        parts = content.pop("fingerprint", None)
        return cls(**content, fingerprint=None if parts is None else StageFingerprint(**parts))
