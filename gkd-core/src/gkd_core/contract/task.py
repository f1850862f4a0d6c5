"""`Task`: where labelled or plain text comes from, and the splits it yields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from gkd_core.contract.method_base import refuse_renamed

if TYPE_CHECKING:
    from pathlib import Path

    from gkd_core.config.schema import TaskConfig, TeacherSize
    from gkd_core.kinds.kind import Kind


@dataclass(frozen=True)
class Split:
    """Rows of one split; the sequences have equal length.

    Attributes:
        text: The texts.
        pair: Second texts of a pair task.
        labels: Class ids (int), values (float), or None for plain text.
    """

    text: Sequence[str]
    pair: Sequence[str] | None = None
    labels: Sequence[int] | Sequence[float] | None = None

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class TaskData:
    """A loaded task.

    Attributes:
        kind: What is predicted.
        train: Training rows.
        validation: Rows that choose the best student.
        test: Rows for the final figures, or None: then those of `validation` are reported.
        classes: Names of the classes in the order of their ids; empty unless classification.
        rows_hash: Hash of the content, equal exactly if the rows are.
        source: What a person calls the data, for logs.
    """

    kind: Kind
    train: Split
    validation: Split
    test: Split | None
    classes: tuple[str, ...]
    rows_hash: str
    source: str


@dataclass(frozen=True)
class DefaultTeacher:
    """A teacher that core trains on the labels of the task, once.

    Attributes:
        build: Writes the untrained model and its tokenizer as a Hugging Face directory.
        training: Settings of the training, as in the configuration's `training` table.
        shape: Whatever else decides its weights, such as its size; part of its name in the cache.
        mask_share: Share of the tokens that it learns to predict, for a masked language model.
    """

    build: Callable[[Path], None]
    training: Mapping[str, Any]
    shape: Mapping[str, Any] = field(default_factory=dict)
    mask_share: float = 0.15


class Task:
    """A source of data, registered through `gkd_register_tasks`.

    Attributes:
        name: What `task.name` accepts.
        config: The settings. Core writes `masked-lm` or `causal-lm` where a person wrote `lm`, and
            an `default_teacher` that suits the student where there is one already.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Refuse a subclass that is written for version 0.1 of gkd."""
        super().__init_subclass__()
        where = f"task class {cls.__module__}.{cls.__qualname__}"
        refuse_renamed(cls, {"own_teacher": "default_teacher"}, where)

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    @property
    def kind(self) -> Kind | None:
        """What `task.kind` asks to be predicted, if it is set."""
        assert self.config.kind != "lm", "core settles `lm` before it makes a task"
        return self.config.kind

    @classmethod
    def defaults(cls, kind: str | None) -> Mapping[str, Any]:
        """Return settings that a stage takes with this task unless it says otherwise.

        Args:
            kind: The stage's `task.kind` as written, or None.

        Returns:
            Nested tables, as in a run file.
        """
        return {}

    def check(self) -> None:
        """Raise `DataError` or `ConfigError` for what is wrong before any row is read."""

    def load(self, kind: Kind, seed: int) -> TaskData:
        """Read the rows.

        Args:
            kind: What is predicted, when the configuration does not say: the default of the model.
            seed: Seed of a held-out share.

        Raises:
            DataError: A file or row is wrong; says which file, line and why.
        """
        raise NotImplementedError

    def default_teacher(self, data: TaskData, size: TeacherSize = "large") -> DefaultTeacher | None:
        """Return the teacher that serves when the user names none, or None if there is none.

        Args:
            data: The rows.
            size: Which one, where several teachers of different size are to teach.
        """
        return None
