"""`Task`: a source of labeled or plain text, and the splits it returns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from gkd_core.config.schema import LM
from gkd_core.contract.method_base import check_options, refuse_renamed

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from gkd_core.config.schema import TaskConfig, TeacherSize
    from gkd_core.kinds.metrics import Metric
    from gkd_core.kinds.task_kind import TaskKind


BLANK = "[BLANK]"
"""The placeholder in a text that the kinds `masked-cloze` and `causal-cloze` fill in."""


class Fit(IntEnum):
    """How well rows fit a kind of task, where the configuration names none."""

    NO = 0
    POSSIBLE = 1
    USUAL = 2
    CERTAIN = 3


@dataclass(frozen=True)
class Split:
    """The rows of one split; the sequences have equal length.

    Attributes:
        text: The texts; a list of words each in token classification.
        pair: The second texts of a pair task, or None; a list of choices each in multiple choice.
        labels: A class id (int), a value (float) or what else the kind of task has for each row;
            None for plain text, and for rows whose labels are not known.
        group: Names of the groups of rows that belong together, such as the answers to one
            question; None if every row is on its own.
        target: What a causal language model is to write after each text; None if it learns the
            texts themselves.
        byte_offsets: Whether to encode where each token is in its text (`Batch.byte_offsets`).
        spans: The parts of each row that a span classifier reads besides the whole, `(part, start,
            end)` each: part 0 is the text and 1 the second one, `end` the character after the last.
            None in other kinds of task.
        chat: Whether text and target are turns of a conversation: a text is then what the user
            says, or a list of messages (`role`, `content`), and a target what the assistant
            answers.
        tools: What the assistant may call in each conversation, as a list that the chat template
            understands; None without.
        source: Name of the source of each row, such as its file or the teacher that teaches it;
            None if all come from one.
        context: Privileged context of each row, which only teachers with prompts of their own
            read; None without.
    """

    text: Sequence[Any]
    pair: Sequence[Any] | None = None
    labels: Sequence[Any] | None = None
    group: Sequence[str] | None = None
    target: Sequence[str] | None = None
    byte_offsets: bool = False
    spans: Sequence[Sequence[tuple[int, int, int]]] | None = None
    chat: bool = False
    tools: Sequence[Any] | None = None
    source: Sequence[str] | None = None
    context: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.text)


COLUMNS = tuple(column.name for column in fields(Split) if column.type != "bool")
"""The fields of a split that have a value for each row."""

SPLITS = ("train", "validation", "test")
"""The splits of a task, and the settings that name their files."""


@dataclass(frozen=True)
class TaskData:
    """A loaded task.

    Attributes:
        kind: Name of the kind of task: what is predicted.
        train: Training rows.
        validation: Rows that select the best student.
        test: Rows for the final metrics; if None, those of `validation` are reported.
        classes: Names of the classes in the order of their ids; empty unless classification.
        rows_hash: Hash of the content, equal if and only if the rows are.
        source: Description of the data, for logs.
    """

    kind: str
    train: Split
    validation: Split
    test: Split | None
    classes: tuple[str, ...]
    rows_hash: str
    source: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources of the training rows; empty if all come from one."""
        return tuple(dict.fromkeys(self.train.source or ()))


@dataclass(frozen=True)
class DefaultTeacher:
    """A teacher that gkd trains on the labels of the task, once, and caches.

    Attributes:
        build: Function that writes the untrained model and its tokenizer to a directory, in Hugging
            Face format. It is called with PyTorch's generator seeded.
        training: Settings of its training, as in the configuration's `training` table.
        shape: Everything else that determines its weights, such as its size, as JSON-serializable
            values; part of its cache key.
        mask_share: Share of the tokens that are masked, for a masked language model.
    """

    build: Callable[[Path], None]
    training: Mapping[str, Any]
    shape: Mapping[str, Any] = field(default_factory=dict)
    mask_share: float = 0.15


class Task:
    """A source of data, registered through `gkd_register_tasks`.

    A subclass sets `name` and overrides `load`. It may have options, in a table of its name, and
    metrics of its own.

    Attributes:
        name: The value of `task.name` that selects it.
        metric: The metric that selects the best student and is compared, one of those of the kind
            of task or of `measure`. Default: that of the kind.
        max_length: Longest sequence in tokens, unless `task.max_length` is set or a model allows
            less.
        config: The `task` table of the configuration. `lm` is already resolved to `masked-lm` or
            `causal-lm`, and `default_teacher` to the architecture of an existing student.
        kinds: Every kind of task by name, which parses the rows of its kind.
        options: Its options.
        model_kind: Name of the kind that the model at the start was made for, if its configuration
            says so; it decides where the rows leave the kind open.
        model_classes: Names of the classes that this model knows, or that the user gave. Rows may
            show only some of them: core adds the others to `TaskData.classes`.
    """

    name: ClassVar[str]
    metric: ClassVar[Metric | None] = None
    max_length: ClassVar[int] = 128

    class Config(BaseModel):
        """Options; each needs a default, which is validated as any value, and a description."""

        model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    options: Config

    def __init_subclass__(cls) -> None:
        """Reject a subclass that violates the contract when its class is defined."""
        super().__init_subclass__()
        where = f"task class {cls.__module__}.{cls.__qualname__}"
        refuse_renamed(cls, {"own_teacher": "default_teacher"}, where)
        check_options(cls.Config, Task.Config, where, "Task")

    def __init__(
        self,
        config: TaskConfig,
        kinds: Mapping[str, TaskKind] = MappingProxyType({}),
        options: Any = None,
        model_kind: str | None = None,
        model_classes: tuple[str, ...] = (),
    ) -> None:
        self.config = config
        self.kinds = kinds
        self.options = self.Config() if options is None else options
        self.model_kind = model_kind
        self.model_classes = model_classes

    @property
    def kind(self) -> str | None:
        """The name of the kind of task, `task.kind`; None if it is not set."""
        assert self.config.kind != LM, "core settles `lm` before it makes a task"
        return self.config.kind

    @classmethod
    def defaults(cls, kind: str | None) -> Mapping[str, Any]:
        """Return default settings of a stage with this task.

        Args:
            kind: The stage's `task.kind` as written, or None.

        Returns:
            Nested tables, as in a run file.
        """
        return {}

    @classmethod
    def facts(cls) -> dict[str, str]:
        """Return facts, by name, that `gkd tasks` shows below the docstring.

        Returns:
            `kind` (of the rows), `metric` (that selects the best student), `data` (what the user
            provides) and `tokens` (the longest sequence); a subclass may change or add some.
        """
        return {
            "kind": "any that the rows fit",
            "metric": "that of the kind" if cls.metric is None else cls.metric.name,
            "data": "its own",
            "tokens": f"at most {cls.max_length}",
        }

    @classmethod
    def adjustments(cls, recipe: str, stage: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return settings that replace those of a recipe, so that it learns on this task.

        For tasks whose rows or models are far smaller than those of the papers. Users are told what
        differs from the recipe; they can override it, or keep the recipe with `--paper-values`.

        Args:
            recipe: Name of the recipe, perhaps of a plugin.
            stage: Name of the stage.
            settings: The settings of the stage that have been given, with the defaults of the task.

        Returns:
            Nested tables, as in a run file, for this stage. Default: none.
        """
        return {}

    def check(self) -> None:
        """Raise `DataError` or `ConfigError` for problems found before any row is read."""

    def files(self) -> Mapping[str, Path] | None:
        """Return the files that `load` reads, by any name, if nothing else determines the rows.

        What was read of large files is then kept in the cache, until one changes. Default: None,
        the rows are loaded each time. Called after `check`.
        """
        return None

    @abstractmethod
    def load(self, kind: str, seed: int) -> TaskData:
        """Read the rows.

        Args:
            kind: Name of the kind if the configuration does not say: the default of the model.
            seed: Seed for drawing a held-out share.

        Raises:
            DataError: A file or row is invalid; the message names the file, the line and the
                problem.
        """
        raise NotImplementedError

    def measure(
        self, split: Split, predictions: Tensor | Sequence[Any], data: TaskData
    ) -> Mapping[str, float]:
        """Return metrics of predictions by name, in addition to those of the kind of task.

        Default: `group_accuracy` if the rows have groups and classes, the share of the groups whose
        rows are all predicted correctly; else none. Not called in language modeling, nor for rows
        without labels.

        Args:
            split: The rows.
            predictions: The prediction for each row, such as class ids int64 `[N]`.
            data: The task, for the names of the classes.
        """
        if split.group is None or split.labels is None:
            return {}
        right: dict[str, bool] = {}
        for group, label, predicted in zip(split.group, split.labels, predictions, strict=True):
            if not isinstance(label, int):
                return {}
            right[group] = right.get(group, True) and label == int(predicted)
        return {"group_accuracy": sum(right.values()) / len(right)}

    def default_teacher(self, data: TaskData, size: TeacherSize = "large") -> DefaultTeacher | None:
        """Return the teacher to use if the user names none. Default: None, there is none.

        Args:
            data: The loaded task.
            size: `large` or `small`, for runs with teachers of different sizes.
        """
        return None
