"""`Contribution`: a kind of thing that plugins register, and what it must be like."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd_core.errors import PluginError
from gkd_core.plugins.class_checks import called, check_class

TOTAL = "total"
"""The name of the sum of all terms among the losses, which are named like methods."""


def _name(item: Any) -> str:
    from gkd_core.contract.method_base import validate_name

    name: str = item.name
    validate_name(name, f"class {called(item)}")
    return name


def _name_of_task(item: Any) -> str:
    from gkd_core.contract.method_base import validate_name

    name: str = item.name
    for part in str(name).split("/", 1):  # the benchmark that it belongs to, if any
        validate_name(part, f"class {called(item)}")
    return name


def _name_of_kind(item: Any) -> str:
    item()  # an object without state, which is what core uses
    return _name(item)


def _stem(item: Any) -> str:
    path: Path = item
    if not path.is_file():
        raise PluginError(f"there is no file {path}")
    return path.stem


def _families(item: Any) -> str:
    families = item.families
    if not isinstance(families, tuple) or not families:
        raise PluginError(
            f"class {called(item)}: `families` must be a tuple of model types, not {families!r}"
        )
    return ", ".join(families)


def _word(item: Any) -> str:
    item.get_short_help_str()  # what `gkd --help` shows of a command
    name: str = item.name or ""
    if not name or name.startswith("-") or len(name.split()) > 1:
        raise PluginError(f"the name of a command is one word, not {name!r}")
    return name


def _nothing(item: Any) -> Collection[str]:
    return ()


def _settings(item: Any) -> Collection[str]:
    from gkd_core.config.resolve import ABOUT
    from gkd_core.config.schema import RunConfig

    return {*RunConfig.model_fields, *ABOUT, "teacher"}


def _settings_and_total(item: Any) -> Collection[str]:
    return {*_settings(item), TOTAL}


def _settings_if_options(item: Any) -> Collection[str]:
    return _settings(item) if item.Config.model_fields else ()


def _settings_of_optim(item: Any) -> Collection[str]:
    from gkd_core.config.schema import OptimConfig

    return OptimConfig.model_fields


def _settings_of_tracking(item: Any) -> Collection[str]:
    from gkd_core.config.schema import TrackingConfig

    return TrackingConfig.model_fields


def _lm(item: Any) -> Collection[str]:
    from gkd_core.config.schema import LM

    return {LM}


@dataclass(frozen=True)
class Contribution:
    """A kind of thing that plugins register.

    Attributes:
        noun: What one is called in messages.
        plural: What several are called.
        hook: The hook that returns it.
        base: Module and name of its base class, which is too expensive to import just to ask.
        name: Returns the name of one, or raises `PluginError`.
        is_class: Whether plugins return classes, and not objects.
        reserved: Returns the names that one cannot have, because gkd gives them another meaning.
    """

    noun: str
    plural: str
    hook: str
    base: str
    name: Callable[[Any], str] = _name
    is_class: bool = True
    reserved: Callable[[Any], Collection[str]] = _nothing

    def extends(self, cls: type) -> bool:
        """Return whether a class is a subclass of the base class."""
        return any(called(base) == self.base for base in cls.__mro__)

    def fits(self, item: object) -> bool:
        """Return whether an item is of this kind."""
        if isinstance(item, type) is not self.is_class:
            return False
        return self.extends(item if isinstance(item, type) else type(item))

    def checked_name(self, item: object) -> str:
        """Return the name of an item.

        Raises:
            PluginError: It could not be used.
        """
        if isinstance(item, type):
            check_class(item)
        name = self.name(item)
        if name in self.reserved(item):
            raise PluginError(
                f"'{name}' has another meaning in the settings of every run; rename the {self.noun}"
            )
        return name


METHOD = Contribution(
    "method",
    "methods",
    "gkd_register_methods",
    "gkd_core.contract.method.Method",
    reserved=_settings_and_total,
)
COMBINER = Contribution(
    "combiner",
    "combiners",
    "gkd_register_combiners",
    "gkd_core.contract.combiner.TeacherCombiner",
    reserved=_settings_and_total,
)
RECIPE = Contribution(
    "recipe",
    "recipes",
    "gkd_register_recipes",
    f"{Path.__module__}.{Path.__qualname__}",
    name=_stem,
    is_class=False,
)
PROCEDURE = Contribution(
    "procedure", "procedures", "gkd_register_recipes", "gkd_core.contract.procedure.Procedure"
)
SITES = Contribution(
    "adapter", "sites", "gkd_register_sites", "gkd_core.models.sites.Sites", name=_families
)
TASK = Contribution(
    "task",
    "tasks",
    "gkd_register_tasks",
    "gkd_core.contract.task.Task",
    name=_name_of_task,
    reserved=_settings_if_options,
)
ANSWER_SOURCE = Contribution(
    "source of answers",
    "sources of answers",
    "gkd_register_teachers",
    "gkd_core.teachers.source.AnswerSource",
)
OPTIMIZER = Contribution(
    "optimizer",
    "optimizers",
    "gkd_register_optimizers",
    "gkd_core.contract.optimizer.OptimizerFactory",
    reserved=_settings_of_optim,
)
ROLLOUT_ENGINE = Contribution(
    "rollout engine",
    "rollout engines",
    "gkd_register_rollouts",
    "gkd_core.contract.rollout.RolloutEngine",
)
SINK = Contribution(
    "tracker",
    "trackers",
    "gkd_register_sinks",
    "gkd_core.contract.sink.Sink",
    reserved=_settings_of_tracking,
)
LAUNCHER = Contribution(
    "launcher",
    "launchers",
    "gkd_register_launchers",
    "gkd_core.contract.launcher.Launcher",
)
KIND = Contribution(
    "kind of task",
    "kinds of task",
    "gkd_register_kinds",
    "gkd_core.kinds.task_kind.TaskKind",
    name=_name_of_kind,
    reserved=_lm,
)
COMMAND = Contribution(
    "command",
    "commands",
    "gkd_register_commands",
    "click.core.Command",
    name=_word,
    is_class=False,
)
CONTRIBUTIONS = (
    METHOD,
    COMBINER,
    RECIPE,
    PROCEDURE,
    SITES,
    TASK,
    ANSWER_SOURCE,
    OPTIMIZER,
    ROLLOUT_ENGINE,
    SINK,
    LAUNCHER,
    KIND,
    COMMAND,
)


def items_of(hook: str, returned: object) -> list[object]:
    """Return the result of an implementation of a registration hook, as a list.

    Raises:
        PluginError: It has returned something else.
    """
    single = isinstance(returned, (type, str, bytes, Mapping))
    if single or not isinstance(returned, Iterable):
        raise PluginError(f"it returned {reprlib.repr(returned)} instead of a list")
    return list(returned)


def kind_of(hook: str, item: object) -> Contribution:
    """Return the kind of an item that a registration hook has returned.

    Raises:
        PluginError: The item does not belong there.
    """
    here = [kind for kind in CONTRIBUTIONS if kind.hook == hook]
    fitting = next((kind for kind in here if kind.fits(item)), None)
    if fitting is not None:
        return fitting
    cls = item if isinstance(item, type) else type(item)
    meant = next((kind for kind in CONTRIBUTIONS if kind.extends(cls)), None)
    wanted = " or ".join(_wanted(kind) for kind in here)
    if meant is None:
        raise PluginError(f"`{hook}` returned {reprlib.repr(item)}, which is not {wanted}")
    if meant in here:
        raise PluginError(f"`{hook}` returned {reprlib.repr(item)}; return {wanted}")
    raise PluginError(
        f"`{hook}` returned the {meant.noun} {called(cls)}; return it from `{meant.hook}`"
    )


def _wanted(kind: Contribution) -> str:
    name = kind.base.rpartition(".")[2]
    return f"a subclass of {name}" if kind.is_class else f"a {name}"
