"""The classes a model predicts: reading, and checking against the task's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from transformers import PretrainedConfig

from gkd_core.errors import ConfigError
from gkd_core.plugins import ask, registry

if TYPE_CHECKING:
    from gkd_core.kinds.task_kind import TaskKind

GENERIC_CLASS = re.compile(r"LABEL_\d+")


def teacher_classes(config: PretrainedConfig) -> tuple[str, ...] | None:
    """Return the class names of a classifier in the order of their ids, or None if it has none.

    Names such as `LABEL_0` or `0`, which only repeat the id, count as none.
    """
    names = output_names(config)
    return None if names_count(names) else names


def output_names(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the names of a model's outputs in the order of their ids, whatever they are.

    A class may have several outputs, as in span classification.
    """
    return tuple(dict.fromkeys(str(config.id2label[index]) for index in sorted(config.id2label)))


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
    _check_names(config, origin)
    expected = kind.outputs(classes) or config.num_labels
    theirs = teacher_classes(config)
    named = kind.has_classes and theirs is not None and not names_count(classes)
    if config.num_labels == expected and (not named or theirs == tuple(classes)):
        return _check_problem_type(config, kind, origin)
    if not kind.has_classes:
        problem = f"has {config.num_labels} outputs, but {kind} needs {expected}"
    elif named and set(theirs or ()) == set(classes):
        problem = f"has the classes in the order {listed(theirs or ())}, not {listed(classes)}"
    else:
        mine = f"the classes {listed(theirs)}" if theirs else f"{config.num_labels} unnamed outputs"
        problem = f"has {mine}, but the task has the classes {listed(classes)}"
    made = _made_for(config)
    hint = f"set task.kind={made[0]}, for which it was made, " if made and kind not in made else ""
    if named and len(theirs or ()) == len(classes) and set(theirs or ()) != set(classes):
        hint = "rename the labels of the rows or id2label in its config.json if they are the same, "
    raise ConfigError(
        f"the teacher ({origin}) {problem}; {hint}choose a teacher trained on this task, or train "
        "one with `gkd run --method hard`"
    )


def _check_names(config: PretrainedConfig, origin: str) -> None:
    """Reject outputs whose names depend on which of two tables is read."""
    names, ids = config.id2label, config.label2id or {}
    if set(ids) != set(names.values()):
        return  # `label2id` was never set, or lists other spellings
    for index, name in names.items():
        if str(ids[name]) != str(index) and len(ids) == len(names):
            raise ConfigError(
                f"{origin}: config.json contradicts itself: output {index} is {name!r} in "
                f"id2label, and {name!r} is output {ids[name]} in label2id. Correct the one that "
                "is wrong"
            )


def _check_problem_type(config: PretrainedConfig, kind: TaskKind, origin: str) -> None:
    """Reject a teacher whose outputs mean something else, although their number is right."""
    theirs = config.problem_type
    if None in (theirs, kind.problem_type) or theirs == kind.problem_type:
        return
    advice = " or ".join(f"task.kind={made}" for made in _made_for(config))
    raise ConfigError(
        f"the teacher ({origin}) has problem_type = '{theirs}' in its config.json, but task.kind = "
        f"'{kind}' needs '{kind.problem_type}'. "
        f"{f'Set {advice}, or choose' if advice else 'Choose'} another teacher"
    )


def _made_for(config: PretrainedConfig) -> list[TaskKind]:
    return [k for k in registry().kinds.values() if ask(partial(k.made, config), False)]


def names_count(names: Sequence[str]) -> bool:
    """Return whether names only repeat the ids, as `LABEL_0` and `0` do."""
    return all(
        GENERIC_CLASS.fullmatch(name) or name == str(index) for index, name in enumerate(names)
    )


def listed(names: Sequence[str]) -> str:
    """Return class names as messages show them."""
    return f"[{', '.join(names)}]"
