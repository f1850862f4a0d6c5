"""`Registry`: what the installed plugins provide, by name."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, TypeVar

from gkd_core.errors import ConfigError, GkdError, MethodError, suggest
from gkd_core.plugins.contributions import (
    ANSWER_SOURCE,
    COMBINER,
    COMMAND,
    KIND,
    LAUNCHER,
    METHOD,
    OPTIMIZER,
    PROCEDURE,
    RECIPE,
    ROLLOUT_ENGINE,
    SINK,
    SITES,
    TASK,
    Contribution,
)
from gkd_core.plugins.discovery import installed
from gkd_core.plugins.loaded import LoadedPlugins
from gkd_core.plugins.owners import Blame, module_of
from gkd_core.plugins.provenance import DISABLE, Plugin, PluginWarning

if TYPE_CHECKING:
    from pathlib import Path

    import click
    import pluggy
    from pydantic import BaseModel

    from gkd_core.config.schema import RolloutConfig, RunConfig
    from gkd_core.contract.combiner import TeacherCombiner
    from gkd_core.contract.launcher import Launcher
    from gkd_core.contract.method import Method
    from gkd_core.contract.optimizer import OptimizerFactory
    from gkd_core.contract.procedure import Procedure
    from gkd_core.contract.rollout import RolloutEngine
    from gkd_core.contract.sink import Sink
    from gkd_core.contract.task import Task
    from gkd_core.kinds.task_kind import TaskKind
    from gkd_core.models.sites import Sites
    from gkd_core.teachers.source import AnswerSource

T = TypeVar("T")


class Registry:
    """Everything the installed plugins provide.

    Registration hooks are called when their kind of thing is first asked for, so that `gkd --help`
    imports no method. What is broken is left out with a warning (see `LoadedPlugins`); asking for
    it raises an error that says why.

    Attributes:
        manager: pluggy's manager; `manager.hook.gkd_step_end(...)` calls the plugins in name order.
        plugins: The loaded plugins in the order of loading, by a name of their own.
        skipped: What was left out.
    """

    def __init__(self, found: Iterable[EntryPoint]) -> None:
        self._loaded = LoadedPlugins(found)
        self.manager = self._loaded.manager
        self.plugins = self._loaded.plugins
        self.skipped = self._loaded.skipped

    @functools.cached_property
    def methods(self) -> Mapping[str, type[Method]]:
        """Every method by name."""
        return self._loaded.named(METHOD)

    @functools.cached_property
    def combiners(self) -> Mapping[str, type[TeacherCombiner]]:
        """Every teacher combiner by name."""
        return self._with_own_table(COMBINER, self._loaded.named(COMBINER), self.methods)

    @functools.cached_property
    def tasks(self) -> Mapping[str, type[Task]]:
        """Every task by name."""
        found: Mapping[str, type[Task]] = self._loaded.named(TASK)
        optional = {name: task for name, task in found.items() if task.Config.model_fields}
        taken = {**self.methods, **self.combiners}
        kept = self._with_own_table(TASK, optional, taken)
        return {name: task for name, task in found.items() if name in kept or name not in optional}

    @functools.cached_property
    def options(self) -> Mapping[str, type[BaseModel]]:
        """The options of every method, of every combiner, and of tasks that have some, by name."""
        tasks = {name: cls for name, cls in self.tasks.items() if cls.Config.model_fields}
        classes: dict[str, Any] = {**self.methods, **self.combiners, **tasks}
        return {name: cls.Config for name, cls in classes.items()}

    @functools.cached_property
    def recipes(self) -> Mapping[str, Path]:
        """Every recipe file by name."""
        return self._loaded.named(RECIPE)

    @functools.cached_property
    def procedures(self) -> Mapping[str, type[Procedure]]:
        """Every procedure by name."""
        return self._loaded.named(PROCEDURE)

    @functools.cached_property
    def answer_sources(self) -> Mapping[str, type[AnswerSource]]:
        """Every source of teachers' answers by name."""
        return self._loaded.named(ANSWER_SOURCE)

    @functools.cached_property
    def optimizers(self) -> Mapping[str, type[OptimizerFactory]]:
        """Every optimizer by name."""
        return self._loaded.named(OPTIMIZER)

    @functools.cached_property
    def rollout_engines(self) -> Mapping[str, type[RolloutEngine]]:
        """Every rollout engine by name."""
        return self._loaded.named(ROLLOUT_ENGINE)

    @functools.cached_property
    def launchers(self) -> Mapping[str, type[Launcher]]:
        """Every launcher of studies by name."""
        return self._loaded.named(LAUNCHER)

    @functools.cached_property
    def sinks(self) -> Mapping[str, type[Sink]]:
        """Every sink by name."""
        return self._loaded.named(SINK)

    @functools.cached_property
    def kinds(self) -> Mapping[str, TaskKind]:
        """Every kind of task by name."""
        return {name: kind() for name, kind in self._loaded.named(KIND).items()}

    @functools.cached_property
    def _sites(self) -> Mapping[str, type[Sites]]:
        """Every adapter for an architecture, by the model types that it is for."""
        return self._loaded.named(SITES)

    @property
    def sites(self) -> tuple[type[Sites], ...]:
        """Every adapter for an architecture."""
        return tuple(self._sites.values())

    @functools.cached_property
    def commands(self) -> Mapping[str, click.Command]:
        """Every command that plugins add to `gkd`."""
        return self._loaded.named(COMMAND)

    def method(self, name: str) -> type[Method]:
        """Return a method by name.

        Raises:
            MethodError: There is none; names the nearest, and the plugins that were skipped.
        """
        if name in self.combiners:
            raise MethodError(
                f"'{name}' combines several teachers; it is not a method by itself. Write the "
                f"methods in its parentheses: {name}(soft)"
            )
        return self._find(METHOD, name, self.methods, MethodError, " `gkd methods` lists all.")

    def recipe(self, name: str) -> Path:
        """Return a recipe file by name, or raise `ConfigError`."""
        return self._find(RECIPE, name, self.recipes)

    def procedure(self, name: str) -> type[Procedure]:
        """Return a procedure by name, or raise `ConfigError`."""
        return self._find(PROCEDURE, name, self.procedures)

    def combiner(self, name: str) -> type[TeacherCombiner]:
        """Return a teacher combiner by name.

        Raises:
            MethodError: There is none; names the nearest, and the plugins that were skipped.
        """
        if name in self.methods:
            raise MethodError(
                f"'{name}' is a method and does not combine teachers; only combiners have "
                f"parentheses: {', '.join(self.combiners) or 'none is installed'}"
            )
        return self._find(COMBINER, name, self.combiners, MethodError)

    def task(self, name: str) -> type[Task]:
        """Return a task by name, or raise `ConfigError`."""
        return self._find(TASK, name, self.tasks)

    def answer_source(self, name: str) -> type[AnswerSource]:
        """Return a source of teachers' answers by name, or raise `ConfigError`."""
        return self._find(ANSWER_SOURCE, name, self.answer_sources)

    def optimizer(self, name: str) -> type[OptimizerFactory]:
        """Return an optimizer by name, or raise `ConfigError`."""
        more = " `gkd optimizers` lists all."
        return self._find(OPTIMIZER, name, self.optimizers, ConfigError, more)

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
        return self._find(ROLLOUT_ENGINE, name, self.rollout_engines)

    def sink(self, name: str) -> type[Sink]:
        """Return a sink by name, or raise `ConfigError`."""
        more = f" There are {', '.join(self.sinks)}"
        return self._find(SINK, name, self.sinks, ConfigError, more)

    def launcher(self, name: str) -> type[Launcher]:
        """Return a launcher by name, or raise `ConfigError`."""
        more = f" There are {', '.join(self.launchers)}"
        return self._find(LAUNCHER, name, self.launchers, ConfigError, more)

    def make_launcher(self, name: str, options: Mapping[str, Any]) -> Launcher:
        """Return a launcher with its options, or raise `ConfigError`."""
        from pydantic import ValidationError

        cls = self.launcher(name)
        try:
            return cls(cls.Config.model_validate(dict(options)))
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise ConfigError(
                f"--option of launcher {name}: {'; '.join(problems)}. It has "
                f"{', '.join(cls.Config.model_fields) or 'none'}"
            ) from error

    def make_sinks(self, config: RunConfig) -> list[Sink]:
        """Return the sinks of a run with their options.

        Raises:
            ConfigError: One lacks something that it needs.
        """
        options = config.tracking.options
        sinks = [self.sink(name)(options.get(name)) for name in config.trackers]
        for sink in sinks:
            sink.check()
        return sinks

    def kind(self, name: str) -> TaskKind:
        """Return a kind of task by name, or raise `ConfigError`."""
        more = f" There are {', '.join(self.kinds)}"
        return self._find(KIND, name, self.kinds, ConfigError, more)

    def provider(self, method: str) -> Plugin:
        """Return the plugin that provides a method or combiner."""
        return self.owner(
            self.methods[method] if method in self.methods else self.combiners[method]
        )

    def owner(self, thing: object) -> Plugin:
        """Return the plugin of something that is registered, such as a kind of task."""
        plugin = self.plugin_of(thing)
        assert plugin is not None, f"{thing!r} is registered"
        return plugin

    def module_of(self, plugin: Plugin) -> str:
        """Return the name of a plugin's module."""
        key = next(key for key, known in self.plugins.items() if known == plugin)
        return module_of(self.manager.get_plugin(key))

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
        return self._loaded.owners.of(thing)

    def blame(self, error: BaseException) -> Blame | None:
        """Return the plugin whose code raised an error, or called what raised it.

        Returns:
            The plugin, and where in it; as text it says both, and the error. None if no code of a
            plugin is in the traceback.
        """
        return self._loaded.owners.blame(error)

    def set_aside(self, thing: object, part: str, reason: str) -> None:
        """Leave out something that is registered, with a warning that names its plugin.

        Args:
            thing: What is registered.
            part: What it is called, such as `command 'run'`.
            reason: What is wrong with it.
        """
        self._loaded.skip(self.owner(thing), reason, part)

    def why_missing(self, part: str) -> str:
        """Return the reason to leave out a plugin's object; empty if there is none."""
        return "; ".join(str(skipped) for skipped in self.skipped if skipped.part == part)

    def hooks_of(self, name: str) -> list[str]:
        """Return the names of the hooks that a plugin implements."""
        callers = self.manager.get_hookcallers(self.manager.get_plugin(name)) or []
        return sorted(caller.name for caller in callers)

    def seconds_of(self, name: str) -> float:
        """Return the time that a plugin took so far to be imported and to register its objects."""
        return self._loaded.seconds.get(self.plugins[name], 0.0)

    def provided(self) -> dict[Plugin, dict[str, list[str]]]:
        """Return the names of everything that is registered, by plugin and kind of thing."""
        everything: Mapping[Contribution, Mapping[str, object]] = {
            METHOD: self.methods,
            COMBINER: self.combiners,
            TASK: self.tasks,
            KIND: self.kinds,
            SITES: self._sites,
            RECIPE: self.recipes,
            PROCEDURE: self.procedures,
            OPTIMIZER: self.optimizers,
            ROLLOUT_ENGINE: self.rollout_engines,
            SINK: self.sinks,
            LAUNCHER: self.launchers,
            ANSWER_SOURCE: self.answer_sources,
            COMMAND: self.commands,
        }
        found: dict[Plugin, dict[str, list[str]]] = {p: {} for p in self.plugins.values()}
        for kind, things in everything.items():
            for name, thing in things.items():
                found[self.owner(thing)].setdefault(kind.plural, []).append(name)
        return found

    def _with_own_table(
        self, kind: Contribution, found: Mapping[str, T], taken: Mapping[str, object]
    ) -> dict[str, T]:
        """Leave out what has the name of a method or combiner, whose options are in its table."""
        for name in found.keys() & taken.keys():
            reason = (
                f"its options would share a table with '{name}' of plugin "
                f"{self.owner(taken[name])}. Uninstall one of them, or set {DISABLE} to its name"
            )
            self.set_aside(found[name], f"{kind.noun} '{name}'", reason)
        return {name: thing for name, thing in found.items() if name not in taken}

    def _find(
        self,
        kind: Contribution,
        name: str,
        known: Mapping[str, T],
        error: type[GkdError] = ConfigError,
        more: str = "",
    ) -> T:
        if name in known:
            return known[name]
        why = self.why_missing(f"{kind.noun} '{name}'")
        raise error(why or self._unknown(kind.noun, name, known) + more)

    def _unknown(self, noun: str, name: str, known: Mapping[str, object]) -> str:
        message = f"unknown {noun} '{name}'.{suggest(name, known)}"
        if not known:
            message += f" No installed plugin provides a {noun}."
        reasons = [str(skipped) for skipped in self.skipped]
        if os.environ.get(DISABLE):
            reasons.append(f"{DISABLE} leaves out {os.environ[DISABLE]}")
        if reasons:
            message += f" It may belong to a plugin that is unavailable: {'; '.join(reasons)}."
        return message


@functools.cache
def registry() -> Registry:
    """Return the registry of the installed plugins, loaded once per process."""
    return Registry(installed())


def ask(question: Callable[[], T], otherwise: T) -> T:
    """Return the answer to a question that core asks of every plugin, whichever the run uses.

    Args:
        question: Asks one plugin.
        otherwise: The answer of a plugin that raises an error, which is only a warning.
    """
    try:
        return question()
    except Exception as error:
        blame = registry().blame(error)
        if blame is None:
            raise
        warnings.warn(f"{blame}; the run continues without it", PluginWarning, stacklevel=2)
        return otherwise
