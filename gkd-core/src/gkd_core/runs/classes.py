"""The classes of a stage: which output of the models stands for which label of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gkd_core.data.classes import order_classes
from gkd_core.data.labels import label_name, spelled_as
from gkd_core.errors import ConfigError, DataError
from gkd_core.models.classes import listed, names_count, output_names

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from gkd_core.contract.task import TaskData
    from gkd_core.kinds.task_kind import TaskKind


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model that a stage starts from.

    Attributes:
        setting: The setting that names the model, such as `teacher.model`.
        config: The model's configuration.
        teaches: Whether the model is a teacher.
    """

    setting: str
    config: PretrainedConfig
    teaches: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Their names in the order of their ids."""
        return output_names(self.config)

    @property
    def named(self) -> bool:
        """Whether the names are more than numbers."""
        return not names_count(self.names)


@dataclass(frozen=True)
class ClassOrder:
    """The sources of the classes' names and order, other than the rows.

    Attributes:
        given: The names that the user gave, in order, or None.
        models: The models that the stage starts from, teachers first.
    """

    given: tuple[str, ...] | None
    models: Sequence[Outputs]

    @property
    def reference(self) -> Outputs | None:
        """The model whose names count: the first that has some, else the first teacher."""
        named = (model for model in self.models if model.named)
        teachers = (model for model in self.models if model.teaches)
        return next(named, next(teachers, None))

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in order; empty if only the rows can tell."""
        if self.given is not None:
            return self.given
        return () if self.reference is None else self.reference.names

    def apply(self, data: TaskData, kind: TaskKind) -> TaskData:
        """Return the rows with these classes, where their labels are among them.

        Raises:
            ConfigError: The names that the user gave contradict a model's, or the kind of task.
            DataError: The user's names lack one of the labels.
        """
        if not kind.has_classes:
            self._refuse_useless(kind)
            return data
        self._refuse_contradiction()
        if not data.classes and self.models:  # rows without labels
            return replace(data, classes=self.names or self.models[0].names)
        spelled = tuple(spelled_as(data.classes, self.names))
        if spelled != data.classes:  # otherwise stages go on sharing the rows
            data = replace(data, classes=spelled)
        if set(data.classes) <= set(map(label_name, self.names)):
            return order_classes(data, self.names, kind)
        if self.given is not None and not self._names_numbers(data.classes):
            missing = [name for name in data.classes if name not in map(label_name, self.given)]
            raise DataError(
                f"task.classes is {listed(self.given)}, but {data.source} also has the labels "
                f"{listed(missing)}. Add them in the order of the models' outputs"
            )
        agree = self._agree(len(data.classes))
        if self._names_numbers(data.classes) or (names_count(data.classes) and agree):
            return replace(data, classes=self.names)
        return data

    def notes(self, data: TaskData, kind: TaskKind, labels: Sequence[str]) -> Iterator[str]:
        """Yield what is assumed of the classes, for the user to check.

        Args:
            data: The rows, with the classes of the stage.
            kind: Their kind.
            labels: The classes as the rows name them.
        """
        if not kind.has_classes:
            return
        classes = data.classes
        counted = bool(labels) and names_count(labels) and not names_count(classes)
        setting = self._named_by
        if counted and setting is not None:
            yield f"the labels {listed(labels)} are taken as {listed(classes)}, as in {setting}"
        for model in self.models if self.given is None and not names_count(classes) else ():
            if model.teaches and not model.named:
                yield (
                    f"{model.setting} does not name its outputs, which are taken in the order "
                    f"{listed(classes)}; task.classes sets another"
                )
        missing = _missing(data, kind)
        if missing:
            yield f"no row to train on has a label of {listed(missing)}"

    @property
    def _named_by(self) -> str | None:
        """The setting that names the classes, if there is one."""
        if self.given is not None:
            return "task.classes"
        return None if self.reference is None else self.reference.setting

    def _names_numbers(self, labels: Sequence[str]) -> bool:
        """Whether the user names the classes that the rows only count."""
        given = self.given is not None and not names_count(self.given)
        return given and names_count(labels) and len(labels) == len(self.names)

    def _agree(self, count: int) -> bool:
        """Whether the models name that many classes, and name the same ones."""
        named = [set(model.names) for model in self.models if model.named]
        return bool(named) and len(self.names) == count and all(s == named[0] for s in named)

    def _refuse_useless(self, kind: TaskKind) -> None:
        if self.given is not None and not kind.is_lm:
            raise ConfigError(
                f"task.classes is {listed(self.given)}, but task.kind = '{kind}' has no classes. "
                "Remove it, or set another task.kind"
            )

    def _refuse_contradiction(self) -> None:
        """Reject an order of the user's that is not that of a model with the same names."""
        for model in self.models if self.given is not None else ():
            if set(model.names) == set(self.names) and model.names != self.names:
                raise ConfigError(
                    f"task.classes is {listed(self.names)}, but {model.setting} names its outputs "
                    f"in the order {listed(model.names)}. Remove task.classes, or correct id2label "
                    "in the model's config.json"
                )


def _missing(data: TaskData, kind: TaskKind) -> list[str]:
    """Return the classes that no row to train on has."""
    if data.train.labels is None:
        return []
    found = {index for label in data.train.labels for index in kind.classes_of(label)}
    return [name for index, name in enumerate(data.classes) if index not in found]
