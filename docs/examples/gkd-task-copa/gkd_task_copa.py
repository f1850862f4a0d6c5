"""COPA: which of two sentences is the cause or the effect of a premise."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gkd_core.api import ConfigError, DataError, Split, Task, TaskData, hookimpl

KIND = "multiple-choice"
FILES = {"train": "train.jsonl", "validation": "val.jsonl"}
ASKED = {"cause": "What was the cause?", "effect": "What happened as a result?"}


class COPA(Task):
    """SuperGLUE's folder of COPA, `train.jsonl` and `val.jsonl`; the test rows have no labels."""

    name = "copa"

    def check(self) -> None:
        """Reject other kinds of task, and a folder without the files."""
        if self.kind not in (None, KIND):
            raise ConfigError(f"task.kind is '{self.kind}', but the task 'copa' has choices")
        for path in self._paths().values():
            if not path.is_file():
                raise DataError(f"{path} does not exist; set task.train to the folder of COPA")

    def load(self, kind: str, seed: int) -> TaskData:
        """Read the rows."""
        rows = {split: _read(path) for split, path in self._paths().items()}
        content = json.dumps([[row.text, row.pair, row.labels] for row in rows.values()])
        return TaskData(
            kind=KIND,
            train=rows["train"],
            validation=rows["validation"],
            test=None,
            classes=("choice1", "choice2"),
            rows_hash=hashlib.sha256(content.encode()).hexdigest(),
            source=f"COPA in {self.config.train}",
        )

    def _paths(self) -> dict[str, Path]:
        if self.config.train is None:
            raise ConfigError("task.train is not set: name the folder of COPA")
        return {split: Path(self.config.train) / name for split, name in FILES.items()}


def _read(path: Path) -> Split:
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    rows = [_row(line, f"{path}:{number}") for number, line in lines]
    texts, choices, labels = ([row[column] for row in rows] for column in range(3))
    return Split(texts, choices, labels)


def _row(line: str, where: str) -> tuple[str, list[str], Any]:
    """Return the premise with the question, the choices, and the right one."""
    try:
        row = json.loads(line)
        text = f"{row['premise']} {ASKED[row['question']]}"
        choices, label = [row["choice1"], row["choice2"]], row["label"]
    except (ValueError, KeyError) as error:
        raise DataError(f"{where}: not a row of COPA ({error})") from error
    if label not in (0, 1):
        raise DataError(f"{where}: the label is {label!r}, not 0 or 1")
    return text, choices, label


@hookimpl
def gkd_register_tasks() -> list[type[Task]]:
    """Register the task."""
    return [COPA]
