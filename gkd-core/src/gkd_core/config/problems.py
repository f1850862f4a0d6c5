"""Error messages for invalid configurations."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gkd_core.config.formats import SettingKey, dotted
from gkd_core.config.overlay import Values, below
from gkd_core.config.renamed import new_name
from gkd_core.config.schema import RunConfig
from gkd_core.config.settings import Setting
from gkd_core.errors import ConfigError, suggest

Schema = dict[str, Any]

MOST_ORIGINS = 3
"""A message with more origins than this names none."""

NOUNS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a string",
    "boolean": "true or false",
    "object": "a table",
}
BOUNDS = {
    "exclusiveMinimum": "greater than",
    "minimum": "of at least",
    "exclusiveMaximum": "less than",
    "maximum": "of at most",
}


def refuse(problems: Iterable[str]) -> None:
    """Raise a single `ConfigError` with all distinct problems, if there are any."""
    told = list(dict.fromkeys(problems))
    if len(told) == 1:
        raise ConfigError(told[0])
    if told:
        raise ConfigError("\n".join([f"{len(told)} settings are wrong:", *told]))


def from_validation(
    error: ValidationError, model: type[BaseModel], values: Values, table: SettingKey = ()
) -> list[str]:
    """Return one message per field for a pydantic error.

    Args:
        error: The error.
        model: The validated model.
        values: The validated settings.
        table: Key of the model's table in them.
    """
    schema = schema_of(model)
    fields: dict[SettingKey, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        # pydantic reports each alternative of a union; group the errors by field.
        unknown = detail["type"] == "extra_forbidden"
        key = detail["loc"] if unknown else _field(detail["loc"], schema)[0]
        fields.setdefault(key, []).append(detail)
    return [_sentence(key, details, schema, values, table) for key, details in fields.items()]


def unknown_key(key: SettingKey, values: Values, known: Iterable[str], what: str) -> str:
    """Return a message for an unknown key, with a suggestion.

    Args:
        key: The key.
        values: The settings that contain it.
        known: Valid names in its place.
        what: What is wrong with it.
    """
    known = sorted(known)
    name = str(key[-1])
    renamed = new_name(key)
    if renamed is not None:
        where = f"`{written(key, values)}`{origins(below(values, key))}"
        return f"{where} is called `{renamed}` since version 0.2"
    own = written(key, values)
    table = own.removesuffix(name) if own.endswith(f".{name}") else ""
    near = suggest(name, known).replace("'", f"'{table}", 1)
    meant = near or _elsewhere(name) or f" Known here: {', '.join(known)}."
    return f"`{own}`{origins(below(values, key))} {what}.{meant}"


def written(key: SettingKey, values: Values) -> str:
    """Return a key as its author wrote it, including the stage."""
    if key in values:
        return str(values[key])
    stage = next((setting.stage for setting in below(values, key)), "")
    return dotted(("stages", stage, *key) if stage else key)


def origins(settings: Iterable[Setting]) -> str:
    """Return the origins of settings in parentheses; empty if there are none or too many."""
    found = list(dict.fromkeys(str(setting.origin) for setting in settings))
    return f" ({', '.join(found)})" if 0 < len(found) <= MOST_ORIGINS else ""


@functools.cache
def schema_of(model: type[BaseModel]) -> Schema:
    """Return the JSON schema of a model."""
    return model.model_json_schema()


def describe(schema: Schema, root: Schema) -> str:
    """Describe in words the values that a JSON schema accepts; empty if it does not say."""
    options = _options(schema, root)
    return " or ".join(filter(None, [", ".join(options[:-1]), *options[-1:]]))


def _options(schema: Schema, root: Schema) -> list[str]:
    schema = _target(schema, root)
    if "anyOf" in schema:
        options = [words for option in schema["anyOf"] for words in _options(option, root)]
        return list(dict.fromkeys(options))
    if "enum" in schema or "const" in schema:
        return [repr(value) for value in schema.get("enum", [schema.get("const")])]
    if schema.get("type") == "array":
        return [_describe_list(schema, root)]
    if "pattern" in schema:
        return [f"a string that matches {schema['pattern']}"]
    bounds = [f"{words} {schema[name]:g}" for name, words in BOUNDS.items() if name in schema]
    noun = NOUNS.get(str(schema.get("type")))
    return [" ".join(filter(None, [noun, " and ".join(bounds)]))] if noun else []


def _describe_list(schema: Schema, root: Schema) -> str:
    entry = describe(schema.get("items", {}), root)
    least = schema.get("minItems", 0)
    words = f"a list of at least {least}" if least else "a list"
    return f"{words} (each entry {entry})" if entry else words


def _sentence(
    field: SettingKey,
    details: list[ErrorDetails],
    schema: Schema,
    values: Values,
    table: SettingKey,
) -> str:
    key = (*table, *field)
    name, source = written(key, values), origins(below(values, key))
    kinds = {detail["type"]: detail for detail in details}
    if "extra_forbidden" in kinds:
        _, parent = _field(field[:-1], schema)
        return unknown_key(key, values, parent.get("properties", {}), "is not a setting")
    if "missing" in kinds:
        return f"`{name}` is missing{origins(below(values, key[:-1]))}"
    if "value_error" in kinds:
        reason = str(kinds["value_error"]["ctx"]["error"])
        return f"{name}: {reason}{source}" if name else reason
    expected = describe(_field(field, schema)[1], schema)
    if not expected:
        return f"{name}: {details[0]['msg']}{source}"
    value = _value_at(details, field)
    advice = _quote_advice(value, expected, below(values, key))
    return f"{name} must be {expected}, got {_literal(value)}{source}{advice}"


def _value_at(details: list[ErrorDetails], field: SettingKey) -> Any:
    """Return the value of a field: the outermost error of a union contains it."""
    return min(details, key=lambda detail: len(detail["loc"]) - len(field))["input"]


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _quote_advice(value: Any, expected: str, settings: Iterable[Setting]) -> str:
    wants_text = "string" in expected or "'" in expected
    if not wants_text or not isinstance(value, (bool, int, float)):
        return ""
    in_yaml = any(setting.origin.source.endswith((".yaml", ".yml")) for setting in settings)
    if isinstance(value, bool) and in_yaml:
        return ". YAML reads an unquoted yes, no, on or off as true or false: quote it"
    return ". Strings must be quoted"


def _field(place: SettingKey, schema: Schema) -> tuple[SettingKey, Schema]:
    """Follow a location into a schema as far as it names fields, and return the last field."""
    target = _target(schema, schema)
    for depth, part in enumerate(place):
        inner = _inside(target, part)
        if inner is None:
            return place[:depth], target
        target = _target(inner, schema)
    return place, target


def _inside(schema: Schema, part: str | int) -> Schema | None:
    inner = schema.get("items") if isinstance(part, int) else _properties(schema).get(part)
    return inner if isinstance(inner, dict) else None


def _properties(schema: Schema) -> dict[str, Any]:
    properties: dict[str, Any] = schema.get("properties", {})
    return properties


def _target(schema: Schema, root: Schema) -> Schema:
    """Resolve references and unwrap optional values."""
    options = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
    if len(options) == 1:
        return _target(options[0], root)
    if "$ref" in schema:
        return _target(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    return schema


def _elsewhere(name: str) -> str:
    """Return a hint if a table of the run has a setting of this name."""
    root = schema_of(RunConfig)
    for table, schema in root["properties"].items():
        if name in _properties(_target(schema, root)):
            return f" Did you mean '{table}.{name}'?"
    return ""
