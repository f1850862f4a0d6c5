"""The result of a stage, saved in its directory so that a resumed run does not train it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gkd_core.atomic import write_file
from gkd_core.runs.fingerprint import StageFingerprint
from gkd_core.strict_json import json_text
from gkd_core.training.manifest import Difference


@dataclass(frozen=True)
class StageResult:
    """The result of a finished stage.

    Attributes:
        name: Name of the stage.
        student: Directory of its student, in Hugging Face format.
        steps: Number of optimizer steps done.
        metric: Name of the metric that selected the student.
        best: The best value of the metric on the validation rows; None if it was never evaluated.
        best_step: Step at which the best value was reached.
        seconds: Duration of the stage, without the time between an interruption and its resumption.
        fingerprint: Everything that determined the student; None without `output.reuse`.
        reused: Directory of the run that trained it; empty if this run did.
        differences: What was not as before when the run was resumed.
        kept: Names of the teachers that were asked about each training row once.
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
    differences: tuple[Difference, ...] = ()
    kept: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write the result as JSON."""
        write_file(path, json_text(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> StageResult:
        """Read a result that `save` wrote."""
        content = json.loads(path.read_text())
        if "key" in content:  # the name of this entry in version 0.1
            content["fingerprint"] = content.pop("key")
        parts = content.pop("fingerprint", None)
        differences = tuple(Difference(**each) for each in content.pop("differences", ()))
        fingerprint = None if parts is None else StageFingerprint(**parts)
        kept = tuple(content.pop("kept", ()))
        return cls(**content, fingerprint=fingerprint, differences=differences, kept=kept)
