"""The classes a model predicts: reading, and checking against the task's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import PretrainedConfig

from gkd_core.errors import ConfigError

if TYPE_CHECKING:
    from gkd_core.kinds.task_kind import TaskKind

GENERIC_CLASS = re.compile(r"LABEL_\d+")


def teacher_classes(config: PretrainedConfig) -> tuple[str, ...] | None:
    """Return the class names of a classifier in the order of their ids, or None if it has none.

    Names such as `LABEL_0` or `0`, which only repeat the id, count as none.
    """
    names = tuple(str(config.id2label[index]) for index in sorted(config.id2label))
    return None if _generic(names) else names


def check_classes(
    config: PretrainedConfig, kind: TaskKind, classes: Sequence[str], origin: str
) -> None:
    """Reject a teacher whose outputs do not match the task.

    Names that only count (`LABEL_0`, `0`) on either side match by position.

    Args:
        config: The teacher's configuration.
        kind: The kind of task.
        classes: The task's classes in the order of their ids: put in the teacher's order by the
            caller (`teacher_classes`).
        origin: Setting that named the teacher.

    Raises:
        ConfigError: The number, names or order of the classes differ.
    """
    expected = kind.outputs(classes) or config.num_labels
    theirs = teacher_classes(config)
    named = kind.has_classes and theirs is not None and not _generic(classes)
    if config.num_labels == expected and (not named or theirs == tuple(classes)):
        return
    if not kind.has_classes:
        problem = f"has {config.num_labels} outputs, but {kind} needs {expected}"
    elif named and set(theirs or ()) == set(classes):
        problem = f"has the classes in the order {listed(theirs or ())}, not {listed(classes)}"
    else:
        mine = f"the classes {listed(theirs)}" if theirs else f"{config.num_labels} unnamed outputs"
        problem = f"has {mine}, but the task has the classes {listed(classes)}"
    raise ConfigError(
        f"the teacher ({origin}) {problem}; choose a teacher trained on this task, or train one "
        "with `gkd run --method hard`"
    )


def _generic(names: Sequence[str]) -> bool:
    return all(
        GENERIC_CLASS.fullmatch(name) or name == str(index) for index, name in enumerate(names)
    )


def listed(names: Sequence[str]) -> str:
    """Return class names as messages show them."""
    return f"[{', '.join(names)}]"
