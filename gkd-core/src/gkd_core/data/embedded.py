"""`embedded`: a task made from the Python that runs, so that nothing has to be downloaded."""

from __future__ import annotations

import inspect
import json
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gkd_core import digest
from gkd_core.atomic import write_file
from gkd_core.config.schema import TeacherSize
from gkd_core.contract.task import DefaultTeacher, Split, Task, TaskData
from gkd_core.data import docstrings
from gkd_core.data.assemble import hash_rows, without_labels
from gkd_core.data.cache import cache_dir
from gkd_core.errors import ConfigError, DataError
from gkd_core.kinds.kind import LM_KINDS, Kind
from gkd_core.models.embedded_teachers import MASK_SHARE, embedded_teacher

STUDENT_ROWS = 200
"""Rows the student gets. This mirrors practice: you have little data; the teacher saw much more."""

MAX_LENGTH = 48

MISFITS = (("encoder", "causal-lm"), ("decoder", "masked-lm"))
"""Settings `task.default_teacher` and `task.kind` that contradict each other."""

LabelledTexts = Mapping[str, tuple[list[str], list[int]]]


class Embedded(Task):
    """Paragraphs of the standard library's docstrings, and the chapter each belongs to.

    Paragraphs of one docstring and near-duplicates are always in the same split. As `masked-lm` or
    `causal-lm` it is the same text without labels. The rows depend on the Python installation and
    on nothing else.
    """

    name = "embedded"

    @classmethod
    def defaults(cls, kind: str | None) -> Mapping[str, Any]:
        """Return settings for few labelled rows, or for all of the text without labels."""
        student = {"layers": 2, "init": "spaced"}
        if kind == "lm" or kind in LM_KINDS:
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

    def check(self) -> None:
        """Refuse settings that belong to other tasks, or contradict each other.

        Raises:
            ConfigError: A file is named, a regression asked for, or an encoder to predict the next
                token, or a decoder masked ones.
        """
        for split in ("train", "validation", "test"):
            value = getattr(self.config, split)
            if value is not None:
                raise ConfigError(
                    f"task.{split} is {value!r}, but the task 'embedded' brings its own rows; "
                    "drop it, or set task.name = 'files'"
                )
        if self.kind == "regression":
            raise ConfigError(
                "task.kind is 'regression', but the task 'embedded' has classes; use "
                "'classification', 'masked-lm' or 'causal-lm'"
            )
        if (self.config.default_teacher, self.kind) in MISFITS:
            raise ConfigError(
                f"task.default_teacher is '{self.config.default_teacher}', which cannot do "
                f"task.kind = '{self.kind}'; drop one of them, or set task.kind = 'lm'"
            )

    def load(self, kind: Kind, seed: int) -> TaskData:
        """Return the rows, classified unless `task.kind` asks for plain text.

        Raises:
            DataError: Python was installed without the sources of its library.
        """
        classes = tuple(docstrings.CHAPTERS)
        splits = {
            name: Split(texts, labels=labels) for name, (texts, labels) in _cached_rows().items()
        }
        labelled = TaskData(
            kind="classification",
            train=splits["train"],
            validation=splits["validation"],
            test=splits["test"],
            classes=classes,
            rows_hash=hash_rows("classification", classes, splits),
            source=f"docstrings of Python {sys.version.split()[0]}",
        )
        if self.kind is None or self.kind == "classification":
            return labelled
        return without_labels(labelled, self.kind)

    def default_teacher(self, data: TaskData, size: TeacherSize = "large") -> DefaultTeacher:
        """Return a small BERT, or a small Llama as a decoder; or a still smaller one."""
        family = "decoder" if data.kind == "causal-lm" else "encoder"
        return embedded_teacher(data, self.config.default_teacher or family, size)


def _cached_rows() -> LabelledTexts:
    library = Path(sysconfig.get_path("stdlib"))
    content = f"{sys.version}\n{library}\n{inspect.getsource(docstrings)}"
    key = digest.of_bytes([content.encode()])[: digest.SHORT]
    path = cache_dir() / "embedded" / f"{key}.json"
    if not path.exists():
        write_file(path, json.dumps(_make_rows(library)))
    try:
        rows: LabelledTexts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"the cached rows {path} are damaged ({error}); delete the file, it is made again"
        ) from error
    return rows


def _make_rows(library: Path) -> LabelledTexts:
    passages = docstrings.unique(docstrings.collect(library))
    return {
        name: ([passage.text for passage in split], [passage.label for passage in split])
        for name, split in docstrings.split(passages).items()
    }
