"""`embedded`: a task built from the running Python's library, without any download."""

from __future__ import annotations

import inspect
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gkd_core import digest
from gkd_core.config.schema import LM, TeacherSize
from gkd_core.contract.task import DefaultTeacher, Split, Task, TaskData
from gkd_core.data import docstrings
from gkd_core.data.assemble import hash_rows, without_labels
from gkd_core.data.cache import cache_entry, read_entry, write_entry
from gkd_core.data.own_rows import reject_files
from gkd_core.errors import ConfigError
from gkd_core.models.embedded_teachers import FAMILY, MASK_SHARE, embedded_teacher

STUDENT_ROWS = 200
"""Student training rows. This mirrors practice: you have little data; the teacher saw much more."""

STUDENT_TEXTS = 1000
"""The same for a language model that writes: from 8,346 texts it learns as much as its teacher."""

MAX_LENGTH = 48

WRITTEN_LENGTH = {"prompt_tokens": 16, "max_new_tokens": MAX_LENGTH - 16}
"""How much text models continue, and by how much: no more than they can read."""

WRITTEN = {
    "rollout": WRITTEN_LENGTH,
    "writing": {**WRITTEN_LENGTH, "temperature": 1.0, "ended": False},
}
"""Settings of text that models write: the likeliest text of so small a teacher repeats itself."""

FRESH_LR = 3e-3
"""Learning rate for classes of a student that does not start from blocks of a teacher."""

FRESH_EPOCHS = 12
"""Passes over the text by such a student: fewer make a worse start than random weights."""

POLICY = "policy"
"""Name of a stage that refines by policy gradient a student which can write already."""

POLICY_LR = 1e-4
"""Learning rate of such a stage, a tenth of that by which the student has learned to write."""

LABELED = "classification"
WRITES = "causal-lm"
PLAIN = ("masked-lm", WRITES)
"""Names of the kinds that it has rows for: with classes, and as plain text."""

MISFITS = (("encoder", "causal-lm"), ("decoder", "masked-lm"))
"""Contradictory pairs of `task.default_teacher` and `task.kind`."""

LabeledTexts = Mapping[str, tuple[list[str], list[int]]]


class Embedded(Task):
    """Paragraphs of the standard library's docstrings, labeled with their chapters.

    Paragraphs of one docstring and near-duplicates are always in the same split. `masked-lm` and
    `causal-lm` use the same text without labels. By default a student learns classes from 200 rows
    and to write from 1,000 texts; its teacher has seen all. The rows depend only on the Python
    installation.
    """

    name = "embedded"

    @classmethod
    def facts(cls) -> dict[str, str]:
        """Return the facts that `gkd tasks` shows."""
        own = {"kind": ", ".join([LABELED, *PLAIN]), "tokens": f"at most {MAX_LENGTH}"}
        return super().facts() | own | {"data": "none: that of the running Python"}

    @classmethod
    def defaults(cls, kind: str | None) -> Mapping[str, Any]:
        """Return settings for a few rows to learn, or for all of the text of a pre-training."""
        student = {"layers": 2, "init": "spaced"}
        if kind == WRITES:
            return {
                "student": student,
                "training": {"epochs": 12, "batch_size": 32, "lr": 1e-3},
                "task": {"rows": STUDENT_TEXTS, "max_length": MAX_LENGTH},
            }
        if _is_text(kind):
            return {
                "student": student,
                "training": {"epochs": 3, "batch_size": 32, "lr": 1e-3},
                "task": {"max_length": MAX_LENGTH, "mask_share": MASK_SHARE},
            }
        return {
            "student": student,
            "training": {"epochs": 50, "batch_size": 32, "lr": 3e-4, "evaluate_every": 70},
            "task": {"rows": STUDENT_ROWS, "max_length": MAX_LENGTH},
        }

    @classmethod
    def adjustments(cls, recipe: str, stage: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the task's own learning rate, number of steps, and settings of written text.

        Those of papers are for models a hundred times as large and for thousands of rows. A student
        that starts from random weights needs more steps on text, and a higher rate to learn classes
        from few rows; one that is only refined, a lower rate.
        """
        kind = settings.get("task", {}).get("kind")
        training = dict(cls.defaults(kind)["training"])
        if settings.get("student", {}).get("init") == "random":
            training |= {"epochs": FRESH_EPOCHS} if _is_text(kind) else {"lr": FRESH_LR}
        if stage == POLICY:
            training |= {"lr": POLICY_LR}
        written = {table: own for table, own in WRITTEN.items() if table in settings}
        return {"training": training, **written}

    def check(self) -> None:
        """Reject settings that belong to other tasks or contradict each other.

        Raises:
            ConfigError: A file is named, regression is requested, or an encoder should predict the
                next token or a decoder masked tokens.
        """
        reject_files(self.config, self.name)
        if self.kind not in (None, LABELED, *PLAIN):
            raise ConfigError(
                f"task.kind is '{self.kind}', but the task 'embedded' has classes; use "
                "'classification', 'masked-lm' or 'causal-lm'"
            )
        if (self.config.default_teacher, self.kind) in MISFITS:
            raise ConfigError(
                f"task.default_teacher is '{self.config.default_teacher}', which does not support "
                f"task.kind = '{self.kind}'; remove one of them, or set task.kind = 'lm'"
            )

    def load(self, kind: str, seed: int) -> TaskData:
        """Return the rows, with classes unless `task.kind` requests plain text.

        Raises:
            DataError: Python was installed without its library sources.
        """
        classes = tuple(docstrings.CHAPTERS)
        splits = {
            name: Split(texts, labels=labels) for name, (texts, labels) in _cached_rows().items()
        }
        labeled = TaskData(
            kind=LABELED,
            train=splits["train"],
            validation=splits["validation"],
            test=splits["test"],
            classes=classes,
            rows_hash=hash_rows(LABELED, classes, splits),
            source=f"docstrings of Python {sys.version.split()[0]}",
        )
        return without_labels(labeled, self.kind) if self.kind in PLAIN else labeled

    def default_teacher(self, data: TaskData, size: TeacherSize = "large") -> DefaultTeacher:
        """Return a small BERT (encoder) or Llama (decoder), even smaller for size `small`."""
        family = self.config.default_teacher or FAMILY[data.kind]
        return embedded_teacher(data, family, size)


def _is_text(kind: str | None) -> bool:
    return kind in (LM, *PLAIN)


def _cached_rows() -> LabeledTexts:
    library = Path(sysconfig.get_path("stdlib"))
    content = f"{sys.version}\n{library}\n{inspect.getsource(docstrings)}"
    key = digest.of_bytes([content.encode()])[: digest.SHORT]
    path = cache_entry("embedded", f"{key}-2.json")  # version 0.1 wrote the rows alone
    rows: LabeledTexts | None = read_entry(path, dict)
    if rows is None:
        rows = _make_rows(library)
        write_entry(path, rows)
    return rows


def _make_rows(library: Path) -> LabeledTexts:
    passages = docstrings.unique(docstrings.collect(library))
    return {
        name: ([passage.text for passage in split], [passage.label for passage in split])
        for name, split in docstrings.split(passages).items()
    }
