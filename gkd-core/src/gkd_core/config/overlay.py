"""Merging settings: the final values for the run and for each stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from gkd_core.config.formats import SettingKey, dotted
from gkd_core.config.graph import stage_of
from gkd_core.config.settings import Level, Setting
from gkd_core.errors import ConfigError, suggest

Values = dict[SettingKey, Setting]
"""The merged settings by key, with shorthands expanded and list entries by index."""

SHAPE = ("layers", "hidden_size", "heads", "ffn_size", "scale", "vocabulary", "config", "init")
"""Settings of a student copied from its teacher; they do not apply to one with a checkpoint."""

OF_RECIPE = (("teacher", "prompt"), ("teacher", "follow"))
"""Settings by which a recipe makes a teacher of a model; they stay when the model is named."""

OF_TRAIN = ("validation", "test", "text", "text_pair", "label", "classes")
"""Task settings that refer to the data of `task.train`."""


def merge(settings: Iterable[Setting], problems: list[str]) -> Values:
    """Merge settings in order: later ones replace those that they overlap.

    Tables merge key by key. A list replaces the previous one; a single entry of a list of tables is
    changed by using its index or its `name` as a key.

    Args:
        settings: The settings, lowest precedence first.
        problems: Receives a message for each setting that cannot be merged.
    """
    values: Values = {}
    settings = list(settings)
    for setting in settings:
        try:
            _assign(values, _place(setting, values), setting)
        except ConfigError as error:
            problems.append(str(error))
    _drop_lower_shape(values)
    _drop_other_rows(values)
    _drop_other_answers(values)
    _keep_role(settings, values)
    _refuse_one_of_several_teachers(values, problems)
    return values


def split_stages(
    settings: Iterable[Setting], problems: list[str]
) -> tuple[list[Setting], list[list[Setting]]]:
    """Separate the settings of the run from those of each stage.

    Returns:
        The settings of the run, and those of each stage, with the same keys as for the run.
    """
    run: list[Setting] = []
    stages: list[list[Setting]] = []
    for setting in settings:
        if setting.key[0] != "stages":
            run.append(setting)
        elif setting.key == ("stages",) and setting.value == []:
            stages = []
        else:
            try:
                _add_to_stage(stages, setting)
            except ConfigError as error:
                problems.append(str(error))
    return run, [_named(stage, index) for index, stage in enumerate(stages)]


def with_stage(run: list[Setting], stage: list[Setting]) -> list[Setting]:
    """Return the settings of the run and of one stage, lowest precedence first.

    Higher source levels win; at equal level the stage's value overrides the run's. The run never
    overrides the stage's settings from a procedure, or its references to another stage's student.
    """
    decided = [
        _whole(setting)
        for setting in stage
        if setting.origin.level is Level.PROCEDURE or _is_link(setting)
    ]
    free = [s for s in run if not any(_overlap(_whole(s), key) for key in decided)]
    return sorted([*free, *stage], key=_rank)


def stage_name(stage: list[Setting]) -> str | None:
    """Return the name of a stage, or None."""
    names = [setting.value for setting in stage if setting.key == ("name",)]
    return names[-1] if names else None


def nested(values: Values) -> dict[str, Any]:
    """Return flat values as nested dictionaries and lists."""
    root: dict[Any, Any] = {}
    for key, setting in values.items():
        node = root
        for part in key[:-1]:
            node = node.setdefault(part, {})
        node[key[-1]] = setting.value
    return {name: _with_lists(inner) for name, inner in root.items()}


def below(values: Values, key: SettingKey) -> Iterator[Setting]:
    """Yield the settings at or below a key."""
    return (setting for place, setting in values.items() if place[: len(key)] == key)


def _place(setting: Setting, values: Values) -> SettingKey:
    """Return the full key of a setting among values.

    `teacher` is the first entry of `teachers`; a string for a model sets its `model`, a string for
    a `source` its `name`.

    Raises:
        ConfigError: The setting names a list entry that does not exist.
    """
    key: SettingKey = ()
    for part in ("teachers", 0, *setting.key[1:]) if setting.key[0] == "teacher" else setting.key:
        entries = _entries(values, key)
        if isinstance(part, str) and (entries or key == ("teachers",)):
            part = _index(part, entries, key, setting)
        key = (*key, part)
    if not isinstance(setting.value, str):
        return key
    if key in (("student",), ("teachers", 0)):
        return (*key, "model")
    return (*key, "name") if key[:1] + key[2:] == ("teachers", "source") else key


def _assign(values: Values, key: SettingKey, setting: Setting) -> None:
    overlapping = [old for old in values if _overlap(old, key)]
    if setting.value is None:
        if overlapping:
            raise ConfigError(
                f"`{setting}` ({setting.origin}) has no value, which cannot unset the one from "
                f"{values[overlapping[0]].origin}; give a value, or remove the key"
            )
        return
    if setting.value == {} and any(len(old) > len(key) for old in overlapping):
        return
    for old in overlapping:
        del values[old]
    values[key] = setting


def _entries(values: Values, key: SettingKey) -> list[str | None]:
    """Return the names of the entries of a list of tables; None for an entry without a name."""
    depth = len(key)
    indices = {
        part
        for place in values
        if place[:depth] == key and len(place) > depth and isinstance(part := place[depth], int)
    }
    names = (values.get((*key, index, "name")) for index in sorted(indices))
    return [None if name is None else name.value for name in names]


def _index(part: str, entries: list[str | None], key: SettingKey, setting: Setting) -> int:
    if part in entries:
        return entries.index(part)
    if part.isdecimal() and int(part) <= len(entries):
        return int(part)
    names = [name for name in entries if isinstance(name, str)]
    there = (
        f"only {', '.join(names) or f'{len(entries)} without names'}" if entries else "being empty"
    )
    raise ConfigError(
        f"`{setting}` ({setting.origin}): `{dotted(key)}` has no entry {part!r}, {there}."
        f"{suggest(part, names)} Write a new entry as [[{dotted(key)}]] in a TOML file"
    )


def _add_to_stage(stages: list[list[Setting]], setting: Setting) -> None:
    if len(setting.key) < 2 or (len(setting.key) == 2 and setting.value != {}):
        raise ConfigError(
            f"`{setting}` must be a list of tables, written [[stages]] in a TOML file, "
            f"got {setting.value!r} ({setting.origin})"
        )
    part = setting.key[1]
    if isinstance(part, str):
        part = _index(part, [stage_name(stage) for stage in stages], ("stages",), setting)
    if part == len(stages):
        stages.append([])
    if setting.key[2:]:
        stages[part].append(replace(setting, key=setting.key[2:]))


def _named(stage: list[Setting], index: int) -> list[Setting]:
    name = str(stage_name(stage) or index)
    return [replace(setting, stage=name) for setting in stage]


def _overlap(one: SettingKey, other: SettingKey) -> bool:
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def _whole(setting: Setting) -> SettingKey:
    """Return the key of a setting, reduced to the table for settings of teachers or student."""
    first = "teachers" if setting.key[0] == "teacher" else setting.key[0]
    return (first,) if first in ("teachers", "student") else setting.key


def _is_link(setting: Setting) -> bool:
    is_text = _whole(setting) in (("teachers",), ("student",)) and isinstance(setting.value, str)
    return is_text and stage_of(setting.value) is not None


def _rank(setting: Setting) -> tuple[int, bool]:
    return setting.origin.level, bool(setting.stage)


def _drop_lower_shape(values: Values) -> None:
    """Drop shape settings of the student with lower precedence than its checkpoint."""
    model = values.get(("student", "model"))
    for name in SHAPE:
        for setting in list(below(values, ("student", name))):
            if model is not None and _rank(setting) < _rank(model):
                del values["student", name]


def _drop_other_rows(values: Values) -> None:
    """Drop the run's settings for its own data if a stage names other data."""
    train = values.get(("task", "train"))
    if train is None or not train.stage:
        return
    for name in OF_TRAIN:
        setting = values.get(("task", name))
        if setting is not None and _rank(setting) < _rank(train) and not setting.stage:
            del values["task", name]


def _drop_other_answers(values: Values) -> None:
    """Drop the run's source of a teacher's answers if a stage names another model."""
    for index in range(len(_entries(values, ("teachers",)))):
        model, table = values.get(("teachers", index, "model")), ("teachers", index, "source")
        for place in [key for key in values if key[: len(table)] == table]:
            if model is not None and model.stage and _rank(values[place]) < _rank(model):
                del values[place]


def _keep_role(settings: Iterable[Setting], values: Values) -> None:
    """Keep the settings by which a recipe turns the only model into a teacher."""
    single = len(_entries(values, ("teachers",))) == 1
    for setting in settings:
        if single and setting.origin.level is Level.RECIPE and setting.key in OF_RECIPE:
            values.setdefault(("teachers", 0, setting.key[1]), setting)


def _refuse_one_of_several_teachers(values: Values, problems: list[str]) -> None:
    entries = list(below(values, ("teachers",)))
    single = next((setting for setting in entries if setting.key[0] == "teacher"), None)
    other = next((setting for setting in entries if setting.key[0] == "teachers"), None)
    if single is not None and other is not None and len(_entries(values, ("teachers",))) > 1:
        problems.append(
            f"`{single}` ({single.origin}) refers to a single teacher, but `teachers` "
            f"({other.origin}) has several; change one of them by index or name, as in "
            "`--set teachers.0.model=DIR`"
        )


def _with_lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if node and all(isinstance(part, int) for part in node):
        return [_with_lists(node[index]) for index in sorted(node)]
    return {name: _with_lists(inner) for name, inner in node.items()}
