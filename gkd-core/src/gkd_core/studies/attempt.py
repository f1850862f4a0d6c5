"""`Attempt`: how often a cell was started, and how it ended the last time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gkd_core.atomic import write_file
from gkd_core.contract.launcher import RESUMABLE
from gkd_core.strict_json import json_text


@dataclass(frozen=True)
class Attempt:
    """The attempts of a cell: how often it was started, and how it ended the last time.

    Attributes:
        count: How often it was started.
        status: Exit status of its process, or minus the number of the signal that killed it;
            None while it runs, and of one whose launcher was killed too.
        error: The end of what it printed; empty if it succeeded.
        seconds: Duration of the last attempt.
        memory: Bytes of memory that its process took at most; 0 if the system does not tell.
        gpu: Share of a GPU that its process took at most; 0 if it used none.
    """

    count: int
    status: int | None = None
    error: str = ""
    seconds: float = 0.0
    memory: int = 0
    gpu: float = 0.0

    @property
    def may_go_on(self) -> bool:
        """Whether the cell has not failed: it was stopped, or its launcher was killed."""
        return self.status is None or self.status in RESUMABLE

    def save(self, path: Path) -> None:
        """Write the attempt as JSON."""
        write_file(path, json_text(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Attempt | None:
        """Read an attempt that `save` wrote; None if there is none."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None
