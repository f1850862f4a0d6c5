"""Build a validated `RunConfig`, with the options of its methods, from merged settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError, create_model

from gkd_core.config.expression import parse_expression, pointer
from gkd_core.config.formats import SettingKey
from gkd_core.config.overlay import Values, below, nested
from gkd_core.config.problems import from_validation, origins, unknown_key, written
from gkd_core.config.schema import (
    LM,
    OptimConfig,
    RolloutConfig,
    RunConfig,
    Section,
    TrackingConfig,
    task_name,
)
from gkd_core.config.settings import DEFAULT
from gkd_core.errors import ConfigError, MethodError, suggest

if TYPE_CHECKING:
    from gkd_core.contract.procedure import Procedure
    from gkd_core.plugins import Registry

Model = TypeVar("Model", bound=BaseModel)

SETTINGS = RunConfig.model_fields.keys() - {"options"}


def build(registry: Registry, values: Values, problems: list[str]) -> RunConfig | None:
    """Validate settings.

    Args:
        registry: The registered methods and combiners, whose options are in tables of their names.
        values: The settings, by key.
        problems: Receives one message per problem.

    Returns:
        The configuration, or None if its own settings are invalid. `options` has an entry for each
        method and combiner that is in the expression, for the task if it has options, and for
        each table.
    """
    tree = nested(values)
    given = {name: table for name, table in tree.items() if name in registry.options}
    for name in tree.keys() - given.keys() - SETTINGS:
        known = SETTINGS | registry.options.keys()
        problems.append(unknown_key((name,), values, known, "is neither a setting nor a method"))
    settings = {name: value for name, value in tree.items() if name in SETTINGS}
    optimizers, sinks = (
        owners.take_options(settings, values, problems) for owners in _owners(registry)
    )
    config = _validate(RunConfig, settings, values, (), problems)
    names = dict.fromkeys([*_option_tables(registry, values, problems), *given])
    if config is not None and task_name(config.task) in registry.options:
        names[task_name(config.task)] = None
    options = {
        name: _validate(registry.options[name], given.get(name, {}), values, (name,), problems)
        for name in names
    }
    if config is None:
        return None
    _check_kind(registry, config, values, problems)
    _check_accumulation(config, values, problems)
    _check_sources(registry, config, values, problems)
    optim = config.optim.model_copy(update={"options": optimizers})
    tracking = config.tracking.model_copy(update={"options": sinks})
    rollout = config.rollout and _with_engine_options(registry, config.rollout, values, problems)
    tables = {"options": options, "optim": optim, "tracking": tracking, "rollout": rollout}
    return config.model_copy(update=tables)


def build_procedure(
    registry: Registry, config: RunConfig, values: Values, problems: list[str]
) -> Procedure | None:
    """Return the procedure that generates the stages of a run, or None if its options are invalid.

    Args:
        registry: The registered procedures.
        config: The run, which names a procedure.
        values: The settings, by key.
        problems: Receives one message per problem.
    """
    assert config.procedure is not None, "asked for where one is named"
    given = [setting for setting in values.values() if setting.key == ("procedure", "name")]
    try:
        procedure = registry.procedure(config.procedure.name)
    except ConfigError as error:
        problems.append(f"procedure.name{origins(given)}: {error}")
        return None
    table = dict(nested(values)["procedure"])
    del table["name"]
    options = _validate(procedure.Config, table, values, ("procedure",), problems)
    return None if options is None else procedure(options)


def _with_engine_options(
    registry: Registry, rollout: RolloutConfig, values: Values, problems: list[str]
) -> RolloutConfig:
    """Return the `rollout` table with all options of its engine, validated."""
    try:
        engine = registry.rollout_engine_class(rollout.engine)
    except ConfigError as error:
        given = [setting for setting in values.values() if setting.key == ("rollout", "engine")]
        problems.append(f"rollout.engine{origins(given)}: {error}")
        return rollout
    # One model for the whole table, so that an unknown key is compared with all keys known here.
    table = create_model("RolloutTable", __base__=(RolloutConfig, engine.Config))
    found = _validate(table, rollout.model_dump(mode="json"), values, ("rollout",), problems)
    return rollout if found is None else RolloutConfig(**found.model_dump(mode="json"))


def as_tree(config: RunConfig) -> dict[str, Any]:
    """Return the settings that have a value, in the form of a run file, without the stages."""
    tree: dict[str, Any] = config.model_dump(mode="json", exclude_none=True, exclude={"stages"})
    for name, options in config.options.items():
        tree[name] = options.model_dump(mode="json", exclude_none=True)
    for table, inner in (("optim", config.optim.options), ("tracking", config.tracking.options)):
        for name, options in inner.items():
            if type(options).model_fields:
                tree[table][name] = options.model_dump(mode="json", exclude_none=True)
    return tree


def _validate(
    model: type[Model], data: Any, values: Values, key: SettingKey, problems: list[str]
) -> Model | None:
    # Strict JSON mode rejects 'ten' and true for a number but still accepts a list for a tuple.
    try:
        return model.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        problems.extend(from_validation(error, model, values, key))
        return None


def _option_tables(registry: Registry, values: Values, problems: list[str]) -> list[str]:
    """Return the registered names in the expression; empty if the stages have their own."""
    setting = values.get(("method",))
    text = RunConfig.model_fields["method"].default if setting is None else setting.value
    origin = str(DEFAULT if setting is None else setting.origin)
    if not isinstance(text, str):
        return []
    try:
        expression = parse_expression(text, origin)
    except ConfigError as error:
        problems.append(str(error))
        return []
    if any(below(values, ("stages",))):
        return []
    named: list[tuple[str, int, Callable[[str], object]]]
    named = [(m.name, m.column, registry.method) for m in expression.members]
    named += [(g.combiner, g.column, registry.combiner) for g in expression.groups]
    known = []
    for name, column, find in named:
        try:
            find(name)
            known.append(name)
        except MethodError as error:
            place = pointer(text, column) if len(named) > 1 else ""
            problems.append(f"method {text!r} ({origin}): {error}{place}")
    return known


def _check_sources(
    registry: Registry, config: RunConfig, values: Values, problems: list[str]
) -> None:
    """Check the options of teachers whose answers come from elsewhere."""
    for number, teacher in enumerate(config.teachers):
        if teacher.source is None:
            continue
        key: SettingKey = ("teachers", number, "source")
        try:
            source = registry.answer_source(teacher.source.name)
        except ConfigError as error:
            problems.append(
                f"{written((*key, 'name'), values)}{origins(below(values, key))}: {error}"
            )
            continue
        _validate(source.Config, teacher.source.model_extra or {}, values, key, problems)


@dataclass(frozen=True)
class _Owners:
    """Things that plugins register, whose options are tables within another table of settings.

    Attributes:
        table: The name of that table.
        section: Its own settings.
        chosen: The one of these that names what is used.
        noun: What one thing is called, with its article.
        known: Everything that is registered, by name.
        find: Returns one by name, or raises `ConfigError`.
    """

    table: str
    section: type[Section]
    chosen: str
    noun: str
    known: Mapping[str, Any]
    find: Callable[[str], Any]

    def take_options(
        self, settings: dict[str, Any], values: Values, problems: list[str]
    ) -> dict[str, BaseModel | None]:
        """Take their tables out of `settings`, and validate them.

        Returns:
            The options of everything that is used, and of each that has a table.
        """
        table = settings.get(self.table, {})
        if not isinstance(table, dict):
            return {}
        own = self.section.model_fields.keys() - {"options"}
        for name in table.keys() - (own | self.known.keys()):
            what = f"is neither a setting nor {self.noun}"
            known = own | self.known.keys()
            problems.append(unknown_key((self.table, name), values, known, what))
        if table:
            settings[self.table] = {name: value for name, value in table.items() if name in own}
        given = {name: table[name] for name in self.known if name in table}
        used = {name: {} for name in self._used(table, values, problems)} | given
        return {
            name: _validate(self.known[name].Config, options, values, (self.table, name), problems)
            for name, options in used.items()
        }

    def _used(self, table: Mapping[str, Any], values: Values, problems: list[str]) -> Iterator[str]:
        """Yield the names that the table chooses and that are registered."""
        named = table.get(self.chosen, self.section.model_fields[self.chosen].default)
        key = (self.table, self.chosen)
        for name in named if isinstance(named, list) else [named]:
            try:
                if isinstance(name, str):
                    yield self.find(name).name
            except ConfigError as error:
                problems.append(f"{'.'.join(key)}{origins(below(values, key))}: {error}")


def _owners(registry: Registry) -> tuple[_Owners, _Owners]:
    """Return the optimizers and the sinks."""
    return (
        _Owners(
            "optim", OptimConfig, "name", "an optimizer", registry.optimizers, registry.optimizer
        ),
        _Owners("tracking", TrackingConfig, "sinks", "a tracker", registry.sinks, registry.sink),
    )


def _check_kind(registry: Registry, config: RunConfig, values: Values, problems: list[str]) -> None:
    kind = config.task.kind
    if kind is not None and kind not in (LM, *registry.kinds):
        key = ("task", "kind")
        names = [repr(name) for name in (LM, *registry.kinds)]
        known = f"{', '.join(names[:-1])} or {names[-1]}"
        where = f"{written(key, values)} must be {known}, got {kind!r}"
        meant = suggest(kind, (LM, *registry.kinds))
        problems.append(f"{where}{origins(below(values, key))}{'.' if meant else ''}{meant}")


def _check_accumulation(config: RunConfig, values: Values, problems: list[str]) -> None:
    training = config.training
    if training.batch_size % training.accumulation:
        keys = ("training", "accumulation"), ("training", "batch_size")
        given = [setting for key in keys for setting in below(values, key)]
        problems.append(
            f"{written(keys[0], values)} must divide {written(keys[1], values)}, but "
            f"{training.batch_size} is not a multiple of {training.accumulation}{origins(given)}"
        )
