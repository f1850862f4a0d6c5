"""Write a resolved configuration as a complete run file; describe run files as a JSON schema."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import tomli_w
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from gkd_core.config.build import as_tree
from gkd_core.config.formats import HEADING, SettingKey, dotted
from gkd_core.config.resolve import ABOUT
from gkd_core.config.schema import LM, RunConfig
from gkd_core.config.settings import Level, Origin, origin_of

if TYPE_CHECKING:
    from gkd_core.config.resolve import Resolved
    from gkd_core.plugins import Registry

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Origins = Mapping[str, Origin]


def complete(resolved: Resolved) -> dict[str, Any]:
    """Return every setting that has a value, as nested dictionaries and lists.

    Read as a run file, it gives the same configuration without the recipe, even if defaults change.
    """
    tree = dict(resolved.about) | as_tree(resolved.config)
    if resolved.config.stages:
        # The run's task defaults may not suit a stage's task, and the stages are complete.
        _drop_task_values(tree, (), resolved.origins)
        tree["stages"] = [{"name": stage.name} | stage.as_tree() for stage in resolved.stages]
    return tree


def to_toml(resolved: Resolved) -> str:
    """Return all settings as a TOML run file, with the origin of each in a comment."""
    origins = dict(resolved.origins)
    if resolved.config.stages:
        for index, stage in enumerate(resolved.stages):
            inner = {f"stages.{index}.{key}": origin for key, origin in stage.origins.items()}
            origins |= inner
    tree = complete(resolved)
    about = [f"{name} = {_value(tree.pop(name))}" for name in resolved.about]
    return "\n".join([HEADING, *about, *_table_lines(tree, (), (), origins)]) + "\n"


def json_schema(registry: Registry) -> dict[str, Any]:
    """Return the JSON schema of run files: settings and options of methods and the like."""
    schema = RunConfig.model_json_schema(schema_generator=_SchemaWriter)
    properties = schema["properties"]
    kind = schema["$defs"]["TaskConfig"]["properties"]["kind"]
    kind["anyOf"][0] = {"enum": [LM, *registry.kinds], "type": "string"}
    del properties["options"]
    text = {"type": "string"}
    properties["student"] = {"anyOf": [text, properties["student"]]}
    properties["teacher"] = {
        "anyOf": [text, {"$ref": "#/$defs/TeacherConfig"}],
        "description": "The only teacher: short for one entry of `teachers`.",
    }
    properties |= {name: text | {"description": f"The {name} of the recipe."} for name in ABOUT}
    for name, options in registry.options.items():
        properties[name] = _schema_of(options, f"#/properties/{name}", registry)
    tables = (("OptimConfig", registry.optimizers), ("TrackingConfig", registry.sinks))
    for table, owners in tables:
        inner = schema["$defs"][table]["properties"]
        del inner["options"]
        for name, owner in owners.items():
            place = f"#/$defs/{table}/properties/{name}"
            inner[name] = _schema_of(owner.Config, place, registry)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _schema_of(options: type[BaseModel], place: str, registry: Registry) -> dict[str, Any]:
    """Return the schema of a plugin's options; of those that have none, that of any table."""
    try:
        return options.model_json_schema(
            ref_template=f"{place}/$defs/{{model}}", schema_generator=_SchemaWriter
        )
    except Exception as error:
        warnings.warn(
            f"the options of plugin {registry.plugin_of(options)} have no JSON schema: {error}",
            stacklevel=2,
        )
        return {"type": "object"}


class _SchemaWriter(GenerateJsonSchema):
    """Writes default values in run-file form; pydantic would expand dataclasses."""

    def encode_default(self, dft: Any) -> Any:
        return TypeAdapter(type(dft)).dump_python(dft, mode="json")


def _drop_task_values(tree: dict[str, Any], key: SettingKey, origins: Origins) -> None:
    for name, value in list(tree.items()):
        place = (*key, name)
        if isinstance(value, dict):
            _drop_task_values(value, place, origins)
        elif origin_of(dotted(place), origins).level is Level.TASK:
            del tree[name]


def _table_lines(
    table: Mapping[str, Any], header: tuple[str, ...], key: SettingKey, origins: Origins
) -> Iterator[str]:
    """Yield the lines of a table: values first, as TOML requires, then nested tables.

    Args:
        table: The table.
        header: The path of names to it.
        key: The same path with list indices.
        origins: Origins by dotted key.
    """
    inner = {name: value for name, value in table.items() if _has_tables(value)}
    for name, value in table.items():
        if name not in inner:
            origin = CONTROL.sub(" ", str(origin_of(dotted((*key, name)), origins)))
            yield f"{_key(name)} = {_value(value)}  # {origin}"
    for name, value in inner.items():
        names = (*header, name)
        path = ".".join(map(_key, names))
        if isinstance(value, dict):
            yield from ("", f"[{path}]")
            yield from _table_lines(value, names, (*key, name), origins)
            continue
        for index, entry in enumerate(value):
            yield from ("", f"[[{path}]]")
            yield from _table_lines(entry, names, (*key, name, index), origins)


def _has_tables(value: Any) -> bool:
    entries = value if isinstance(value, list) else [value]
    return bool(entries) and all(isinstance(entry, dict) for entry in entries)


def _key(name: str) -> str:
    return name if BARE_KEY.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(name)} = {_value(entry)}" for name, entry in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").rstrip("\n")
