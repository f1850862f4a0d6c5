"""The plugins whose code determines the student of a stage."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING

from gkd_core import hookspecs
from gkd_core.contract.architectures import adapter_of
from gkd_core.plugins.code import code_digests, code_files, code_modules, imports, module_file

if TYPE_CHECKING:
    from pathlib import Path

    from gkd_core.plugins import Plugin, Registry
    from gkd_core.training.stage_spec import StageSpec

CORE_MODULE, CORE = "gkd_core", "gkd-core"
"""The module and the distribution whose code trains every stage."""

STAGE_HOOKS = [
    name
    for name, hook in inspect.getmembers(hookspecs, inspect.isfunction)
    if name.startswith("gkd_") and "stage" in inspect.signature(hook).parameters
]
"""Hooks that are given a stage, whose student they may change."""


def stage_code(spec: StageSpec, registry: Registry) -> dict[str, dict[str, str]]:
    """Return the hashes of the code that determines a stage's student: gkd's and of its plugins.

    Args:
        spec: The stage.
        registry: The plugins.

    Returns:
        The hash of each file by its name, by the name of the distribution.
    """
    found = {CORE: code_digests(CORE_MODULE, CORE)}
    for plugin in participants(spec, registry):
        if plugin.distribution != CORE:
            found.setdefault(plugin.distribution, {}).update(_plugin_code(plugin, registry))
    return found


def installed_code(registry: Registry) -> dict[str, dict[str, str]]:
    """Return the hashes of the code of gkd and of every plugin, as in `stage_code`."""
    found = {CORE: code_digests(CORE_MODULE, CORE)}
    for plugin in registry.plugins.values():
        if plugin.distribution != CORE:
            found.setdefault(plugin.distribution, {}).update(_plugin_code(plugin, registry))
    return found


def participants(spec: StageSpec, registry: Registry) -> list[Plugin]:
    """Return the plugins that take part in a stage, sorted by name.

    These are the plugins of what the stage is made of, those whose classes, functions or modules
    it uses, those with a hook that is given the stage, and those whose modules these modules
    import, directly or not. A plugin that only refuses an outline, adds to the report, or has
    recipes and commands does not change a student.
    """
    bases = {base for made_of in _classes(spec, registry) for base in made_of.__mro__}
    used = {module for base in bases for module in _modules(base)}
    files = {file for module in used if (file := module_file(module)) is not None}
    found = {plugin for hook in STAGE_HOOKS for plugin, _ in registry.implementations(hook)}
    used |= {registry.module_of(plugin) for plugin in found}
    found |= {plugin for base in bases if (plugin := registry.plugin_of(base)) is not None}
    others = [plugin for plugin in registry.plugins.values() if plugin not in found]
    found |= {plugin for plugin in others if files & _files(plugin, registry)}
    found |= set(_importing(used, registry))
    return sorted(found, key=lambda plugin: plugin.name)


def _importing(modules: set[str], registry: Registry) -> Iterator[Plugin]:
    """Yield the plugins that have some modules, what these import, what that imports, and so on."""
    known = {
        name: (plugin, file)
        for plugin in registry.plugins.values()
        if plugin.distribution != CORE
        for name, file in code_modules(registry.module_of(plugin), plugin.distribution).items()
    }
    left, seen = modules & known.keys(), set[str]()
    while left:
        name = left.pop()
        plugin, file = known[name]
        yield plugin
        seen.add(name)
        left |= (imports(name, file) & known.keys()) - seen


def _classes(spec: StageSpec, registry: Registry) -> Iterator[type]:
    """Yield the classes of everything a stage is made of that a plugin may bring."""
    yield type(spec.kind)
    yield type(spec.task)
    yield registry.optimizer(spec.config.optim.name)
    if spec.config.rollout is not None:
        yield registry.rollout_engine_class(spec.config.rollout.engine)
    yield from (type(owner.methods[0]) for owner in spec.owners)
    yield from (type(teacher.source) for teacher in spec.teachers if teacher.source is not None)
    for config in (spec.student_config, *(teacher.config for teacher in spec.teachers)):
        adapter = adapter_of(config.model_type)
        if adapter is not None:
            yield adapter


def _modules(cls: type) -> Iterator[str]:
    """Yield the module of a class, and those from which that module has what it uses."""
    yield cls.__module__
    module = sys.modules.get(cls.__module__)
    for value in [] if module is None else list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(value, type | FunctionType):
            yield value.__module__


def _files(plugin: Plugin, registry: Registry) -> set[Path]:
    return set(code_files(registry.module_of(plugin), plugin.distribution).values())


def _plugin_code(plugin: Plugin, registry: Registry) -> dict[str, str]:
    """Return the hashes of a plugin's files; its version if it has none."""
    files = code_digests(registry.module_of(plugin), plugin.distribution)
    return files or {"": plugin.version}
