"""`Registry`: what the installed plugins provide."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from gkd_core import hookspecs
from gkd_core.errors import ConfigError, MethodError, PluginError, suggest
from gkd_core.plugins.owners import Blame, Owners
from gkd_core.plugins.provenance import DISABLE, Plugin, Skipped

if TYPE_CHECKING:
    from pathlib import Path

    import click
    from pydantic import BaseModel

    from gkd_core.config.schema import RolloutConfig, RunConfig
    from gkd_core.contract.combiner import TeacherCombiner
    from gkd_core.contract.method import Method
    from gkd_core.contract.optimizer import OptimizerFactory
    from gkd_core.contract.procedure import Procedure
    from gkd_core.contract.rollout import RolloutEngine
    from gkd_core.contract.task import Task
    from gkd_core.kinds.task_kind import TaskKind
    from gkd_core.models.sites import Sites
    from gkd_core.teachers.source import AnswerSource

VERSION = "GKD_API_VERSION"
"""Where a plugin module may say which version of the contract it is written for."""

T = TypeVar("T")


class Registry:
    """Everything the installed plugins provide.

    Registration hooks are called when their kind of thing is first asked for, so that `gkd --help`
    imports no method.

    Attributes:
        manager: pluggy's manager; `manager.hook.gkd_step_end(...)` calls the plugins in name order.
        plugins: The loaded plugins by entry-point name.
        skipped: The broken ones.
    """

    def __init__(self, found: Iterable[EntryPoint]) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.plugins: dict[str, Plugin] = {}
        self.skipped: list[Skipped] = []
        self._owners = Owners()
        # pluggy calls the last registered first, so that registering from Z to A calls A to Z.
        for entry in sorted(_enabled(found), key=lambda entry: entry.name, reverse=True):
            self._load(entry)
        self._refuse_unknown_hooks()

    def _load(self, entry: EntryPoint) -> None:
        plugin = _provenance(entry)
        if plugin.name in self.plugins:
            raise PluginError(
                f"two plugins are called '{plugin.name}': {self.plugins[plugin.name]} and "
                f"{plugin}. "
                f"Uninstall one, or set {DISABLE} to the name of its distribution."
            )
        try:
            module = entry.load()
        except Exception as error:
            self._skip(plugin, error)
            return
        _refuse_other_contract(plugin, module)
        try:
            self.manager.register(module, plugin.name)
        except pluggy.PluginValidationError as error:
            raise PluginError(f"plugin {plugin} has a wrong hook. {error}") from error
        self.plugins[plugin.name] = plugin
        self._owners.add_plugin(plugin, module)

    def _skip(self, plugin: Plugin, error: Exception) -> None:
        skipped = Skipped(plugin, f"{type(error).__name__}: {error}")
        self.skipped.append(skipped)
        warnings.warn(f"{skipped}. What it provides is unavailable.", stacklevel=2)

    def _refuse_unknown_hooks(self) -> None:
        try:
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            plugin = self.plugins[self.manager.get_name(error.plugin) or ""]
            known = [name for name in dir(hookspecs) if name.startswith("gkd_")]
            wrong = next(
                name
                for name in dir(error.plugin)
                if name not in known and self.manager.parse_hookimpl_opts(error.plugin, name)
            )
            renamed = hookspecs.RENAMED.get(wrong)
            meant = f" It is called '{renamed}' since version 0.2 of gkd." if renamed else ""
            raise PluginError(
                f"plugin {plugin} implements the unknown hook '{wrong}'."
                f"{meant or suggest(wrong, known)} "
                f"Mend the plugin, or set {DISABLE}={plugin.name}."
            ) from error

    def _collect(self, hook: str) -> Iterator[tuple[Plugin, Any]]:
        """Yield what each plugin returns from a registration hook, with its provenance."""
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            plugin = self.plugins[implementation.plugin_name]
            try:
                items = list(implementation.function())
            except PluginError:
                raise
            except Exception as error:
                self._skip(plugin, error)
                continue
            for item in items:
                self._owners.add(plugin, item)
                yield plugin, item

    def _named(
        self,
        hook: str,
        kind: str,
        key: Callable[[T], str],
        belongs: Callable[[Any], bool] = lambda item: True,
    ) -> dict[str, tuple[Plugin, T]]:
        """Collect things of a kind that have a name, refusing two of the same name."""
        found: dict[str, tuple[Plugin, T]] = {}
        for plugin, item in filter(lambda pair: belongs(pair[1]), self._collect(hook)):
            name = key(item)
            if name in found:
                raise PluginError(
                    f"two plugins provide a {kind} '{name}': {found[name][0]} and {plugin}. "
                    f"Uninstall one of them, or set {DISABLE} to its name."
                )
            found[name] = (plugin, item)
        return dict(sorted(found.items()))

    @functools.cached_property
    def _methods(self) -> dict[str, tuple[Plugin, type[Method]]]:
        return self._named("gkd_register_methods", "method", lambda method: method.name)

    @functools.cached_property
    def _combiners(self) -> dict[str, tuple[Plugin, type[TeacherCombiner]]]:
        found: dict[str, tuple[Plugin, type[TeacherCombiner]]] = self._named(
            "gkd_register_combiners", "combiner", lambda combiner: combiner.name
        )
        for name in found.keys() & self._methods.keys():
            raise PluginError(
                f"'{name}' is a method of {self._methods[name][0]} and a combiner of "
                f"{found[name][0]}; their options would share a table. Uninstall one of them, or "
                f"set {DISABLE} to its name."
            )
        return found

    @functools.cached_property
    def _recipes(self) -> dict[str, tuple[Plugin, Path]]:
        return self._named(
            "gkd_register_recipes",
            "recipe",
            lambda path: path.stem,
            lambda item: not isinstance(item, type),
        )

    @functools.cached_property
    def methods(self) -> Mapping[str, type[Method]]:
        """Every method by name."""
        return {name: method for name, (_, method) in self._methods.items()}

    @functools.cached_property
    def options(self) -> Mapping[str, type[BaseModel]]:
        """The options of every method, of every combiner, and of tasks that have some, by name."""
        found = {name: cls.Config for name, cls in {**self.methods, **self.combiners}.items()}
        tasks = {name: cls.Config for name, cls in self.tasks.items() if cls.Config.model_fields}
        for name in tasks.keys() & found.keys():
            raise PluginError(
                f"'{name}' is a method or combiner of {self.provider(name)} and a task with "
                f"options; these would share a table. Uninstall one of them, or set {DISABLE} to "
                "its name."
            )
        return found | tasks

    @functools.cached_property
    def recipes(self) -> Mapping[str, Path]:
        """Every recipe file by name."""
        return {name: path for name, (_, path) in self._recipes.items()}

    @functools.cached_property
    def procedures(self) -> Mapping[str, type[Procedure]]:
        """Every procedure by name."""
        found: dict[str, tuple[Plugin, type[Procedure]]] = self._named(
            "gkd_register_recipes",
            "procedure",
            lambda procedure: procedure.name,
            lambda item: isinstance(item, type),
        )
        return {name: procedure for name, (_, procedure) in found.items()}

    @functools.cached_property
    def combiners(self) -> Mapping[str, type[TeacherCombiner]]:
        """Every teacher combiner by name."""
        return {name: combiner for name, (_, combiner) in self._combiners.items()}

    @functools.cached_property
    def tasks(self) -> Mapping[str, type[Task]]:
        """Every task by name."""
        found: dict[str, tuple[Plugin, type[Task]]] = self._named(
            "gkd_register_tasks", "task", lambda task: task.name
        )
        return {name: task for name, (_, task) in found.items()}

    @functools.cached_property
    def answer_sources(self) -> Mapping[str, type[AnswerSource]]:
        """Every source of teachers' answers by name."""
        found: dict[str, tuple[Plugin, type[AnswerSource]]] = self._named(
            "gkd_register_teachers", "source of answers", lambda source: source.name
        )
        return {name: source for name, (_, source) in found.items()}

    @functools.cached_property
    def _optimizers(self) -> dict[str, tuple[Plugin, type[OptimizerFactory]]]:
        return self._named("gkd_register_optimizers", "optimizer", lambda optimizer: optimizer.name)

    @functools.cached_property
    def optimizers(self) -> Mapping[str, type[OptimizerFactory]]:
        """Every optimizer by name."""
        return {name: optimizer for name, (_, optimizer) in self._optimizers.items()}

    @functools.cached_property
    def rollout_engines(self) -> Mapping[str, type[RolloutEngine]]:
        """Every rollout engine by name."""
        found: dict[str, tuple[Plugin, type[RolloutEngine]]] = self._named(
            "gkd_register_rollouts", "rollout engine", lambda engine: engine.name
        )
        return {name: engine for name, (_, engine) in found.items()}

    @functools.cached_property
    def _kinds(self) -> dict[str, tuple[Plugin, type[TaskKind]]]:
        return self._named("gkd_register_kinds", "kind of task", lambda kind: kind.name)

    @functools.cached_property
    def kinds(self) -> Mapping[str, TaskKind]:
        """Every kind of task by name."""
        return {name: kind() for name, (_, kind) in self._kinds.items()}

    @functools.cached_property
    def sites(self) -> tuple[type[Sites], ...]:
        """Every adapter for an architecture."""
        return tuple(adapter for _, adapter in self._collect("gkd_register_sites"))

    @functools.cached_property
    def commands(self) -> Mapping[str, click.Command]:
        """Every command that plugins add to `gkd`."""
        found: dict[str, tuple[Plugin, click.Command]] = self._named(
            "gkd_register_commands", "command", lambda command: command.name or ""
        )
        return {name: command for name, (_, command) in found.items()}

    def method(self, name: str) -> type[Method]:
        """Return a method by name.

        Raises:
            MethodError: There is none; names the nearest, and the plugins that were skipped.
        """
        if name in self.combiners:
            raise MethodError(
                f"'{name}' combines several teachers, and is no method by itself. Write the "
                f"methods in its parentheses: {name}(soft)"
            )
        if name not in self.methods:
            raise MethodError(
                self._missing("method", name, self.methods) + " `gkd methods` lists all."
            )
        return self.methods[name]

    def recipe(self, name: str) -> Path:
        """Return a recipe file by name, or raise `ConfigError`."""
        if name not in self.recipes:
            raise ConfigError(self._missing("recipe", name, self.recipes))
        return self.recipes[name]

    def procedure(self, name: str) -> type[Procedure]:
        """Return a procedure by name, or raise `ConfigError`."""
        if name not in self.procedures:
            raise ConfigError(self._missing("procedure", name, self.procedures))
        return self.procedures[name]

    def combiner(self, name: str) -> type[TeacherCombiner]:
        """Return a teacher combiner by name.

        Raises:
            MethodError: There is none; names the nearest, and the plugins that were skipped.
        """
        if name in self.methods:
            raise MethodError(
                f"'{name}' is a method, and combines no teachers; only combiners have parentheses: "
                f"{', '.join(self.combiners) or 'none is installed'}"
            )
        if name not in self.combiners:
            raise MethodError(self._missing("combiner", name, self.combiners))
        return self.combiners[name]

    def task(self, name: str) -> type[Task]:
        """Return a task by name, or raise `ConfigError`."""
        if name not in self.tasks:
            raise ConfigError(self._missing("task", name, self.tasks))
        return self.tasks[name]

    def answer_source(self, name: str) -> type[AnswerSource]:
        """Return a source of teachers' answers by name, or raise `ConfigError`."""
        if name not in self.answer_sources:
            raise ConfigError(self._missing("source of answers", name, self.answer_sources))
        return self.answer_sources[name]

    def optimizer(self, name: str) -> type[OptimizerFactory]:
        """Return an optimizer by name, or raise `ConfigError`."""
        if name not in self.optimizers:
            raise ConfigError(
                self._missing("optimizer", name, self.optimizers) + " `gkd optimizers` lists all."
            )
        return self.optimizers[name]

    def optimizer_provider(self, name: str) -> Plugin:
        """Return the plugin that provides an optimizer."""
        return self._optimizers[name][0]

    def make_optimizer(self, config: RunConfig) -> OptimizerFactory:
        """Return the optimizer of a stage with its options, or raise `ConfigError`."""
        cls = self.optimizer(config.optim.name)
        options = config.optim.options.get(cls.name)
        return cls(cls.Config() if options is None else options, config.training)

    def rollout_engine(self, config: RolloutConfig) -> RolloutEngine:
        """Return the engine that a `rollout` table names, or raise `ConfigError`."""
        engine = self.rollout_engine_class(config.engine)
        return engine(engine.Config(**config.options))

    def rollout_engine_class(self, name: str) -> type[RolloutEngine]:
        """Return a rollout engine by name, or raise `ConfigError`."""
        if name not in self.rollout_engines:
            raise ConfigError(self._missing("rollout engine", name, self.rollout_engines))
        return self.rollout_engines[name]

    def kind(self, name: str) -> TaskKind:
        """Return a kind of task by name, or raise `ConfigError`."""
        if name not in self.kinds:
            known = ", ".join(self.kinds)
            raise ConfigError(
                f"{self._missing('kind of task', name, self.kinds)} There are {known}"
            )
        return self.kinds[name]

    def kind_provider(self, name: str) -> Plugin:
        """Return the plugin that provides a kind of task."""
        return self._kinds[name][0]

    def provider(self, method: str) -> Plugin:
        """Return the plugin that provides a method or combiner."""
        return (self._methods[method] if method in self._methods else self._combiners[method])[0]

    def module_of(self, plugin: Plugin) -> str:
        """Return the name of a plugin's module."""
        key = next(key for key, known in self.plugins.items() if known == plugin)
        found = self.manager.get_plugin(key)
        return str(getattr(found, "__name__", type(found).__module__))

    def implementations(self, hook: str) -> list[tuple[Plugin, pluggy.HookCaller]]:
        """Return the plugins that implement a hook in the order of calls, each with its call."""
        manager = self.manager
        found = [i.plugin for i in reversed(getattr(manager.hook, hook).get_hookimpls())]
        others = {manager.get_name(one) or "": [p for p in found if p is not one] for one in found}
        return [
            (self.plugins[key], manager.subset_hook_caller(hook, left_out))
            for key, left_out in others.items()
        ]

    def plugin_of(self, thing: object) -> Plugin | None:
        """Return the plugin that a class, an object, a function or a module belongs to.

        Args:
            thing: Such as a hook implementation, a method, or its class.

        Returns:
            Name, distribution and version; None if it is no plugin's.
        """
        return self._owners.of(thing)

    def blame(self, error: BaseException) -> Blame | None:
        """Return the plugin whose code raised an error, or called what raised it.

        Returns:
            The plugin, and where in it; as text it says both, and the error. None if no code of a
            plugin is in the traceback.
        """
        return self._owners.blame(error)

    def _missing(self, kind: str, name: str, known: Mapping[str, object]) -> str:
        message = f"unknown {kind} '{name}'.{suggest(name, known)}"
        if not known:
            message += f" No installed plugin provides a {kind}."
        reasons = [str(skipped) for skipped in self.skipped]
        if os.environ.get(DISABLE):
            reasons.append(f"{DISABLE} leaves out {os.environ[DISABLE]}")
        if reasons:
            message += f" It may belong to a plugin that is unavailable: {'; '.join(reasons)}."
        return message

    def hooks_of(self, plugin: Plugin) -> list[str]:
        """Return the names of the hooks a plugin implements."""
        callers = self.manager.get_hookcallers(self.manager.get_plugin(plugin.name)) or []
        return sorted(caller.name for caller in callers)


@functools.cache
def registry() -> Registry:
    """Return the registry of the installed plugins, loaded once per process."""
    return Registry(entry_points(group=hookspecs.PROJECT))


def _refuse_other_contract(plugin: Plugin, module: object) -> None:
    """Refuse a plugin that says it is written for another version of the contract."""
    wanted = getattr(module, VERSION, hookspecs.API_VERSION)
    if wanted != hookspecs.API_VERSION:
        raise PluginError(
            f"plugin {plugin} is written for version {wanted} of gkd's plugin contract "
            f"({VERSION}), and this gkd has version {hookspecs.API_VERSION}. Install a version of "
            f"the plugin for it, or set {DISABLE}={plugin.name}"
        )


def _provenance(entry: EntryPoint) -> Plugin:
    distribution = entry.dist
    if distribution is None:
        return Plugin(entry.name, entry.value, "unknown version")
    return Plugin(entry.name, distribution.name, distribution.version)


def _enabled(found: Iterable[EntryPoint]) -> Iterator[EntryPoint]:
    """Leave out what `GKD_DISABLE_PLUGINS` names, by plugin or distribution, comma-separated."""
    disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",")}
    for entry in found:
        if not disabled & {entry.name, _provenance(entry).distribution}:
            yield entry
