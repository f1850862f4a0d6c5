"""`PluginHooks`: tells methods and plugins what happens in a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from gkd_core.distributed.ranks import any_rank, tell, wait
from gkd_core.objective.objective import name_seed
from gkd_core.plugins.answers import one_of
from gkd_core.plugins.isolation import set_back
from gkd_core.plugins.owners import described
from gkd_core.training.live_stage import LiveStageInfo, seeded

if TYPE_CHECKING:
    from gkd_core.contract.method_base import MethodBase
    from gkd_core.contract.run_info import RunInfo
    from gkd_core.contract.step import Step
    from gkd_core.plugins import Plugin, Registry
    from gkd_core.training.stage import Stage


@dataclass
class Event:
    """Something that happened after a step.

    Attributes:
        name: What it was.
        values: The losses, or the metrics.
        told: Names of the methods and plugins that have been told.
    """

    name: Literal["step_end", "evaluate"]
    values: Mapping[str, float]
    told: list[str] = field(default_factory=list)


T = TypeVar("T")

HOOKS = {"step_end": ("gkd_step_end", "losses"), "evaluate": ("gkd_evaluate", "metrics")}
"""The hook of plugins for each event, and its argument with the values."""


class PluginHooks:
    """Reports events to the methods and combiners of a stage, and then to all plugins.

    If one of them fails when told what happened after a step, no others are told: the step is
    completed and a checkpoint is saved before the failure ends the run. Whoever has not been told
    by then is told when the run is resumed.

    Args:
        registry: Knows the plugins.
        run: Returns the view of the run, as it is now.

    Attributes:
        failed: Whether a method or plugin has failed, on any rank.
        untold: The events that not all have been told.
    """

    def __init__(self, registry: Registry, run: Callable[[], RunInfo]) -> None:
        self._registry = registry
        self._run = run
        self._failure: BaseException | None = None
        self.failed = False
        self.untold: list[Event] = []

    def stage_start(self, stage: Stage) -> bool:
        """Report that the first step of a stage is about to begin.

        Returns:
            Whether a method asks to skip the stage; the same on every rank.
        """
        run = self._run()
        skipped = self.methods_start(stage)
        if skipped:
            run.say(f"stage {stage.name}: {skipped}")
        info = LiveStageInfo.of(stage, run.say)
        for _, call in self._of_plugins("gkd_stage_start", stage, run=run, stage=info):
            call()
        return skipped is not None

    def methods_start(self, stage: Stage) -> str | None:
        """Report to the methods only; return why one asks to skip the stage, if one does."""
        info = LiveStageInfo.of(stage, self._run().say)
        calls = _of_methods(stage, lambda method: _reason(method, method.on_stage_start(info)))
        reasons = [call() for _, call in calls]
        return tell(next(filter(None, reasons), None))

    def step_end(self, stage: Stage, step: Step, losses: Mapping[str, float]) -> None:
        """Report the losses of a step."""
        self._tell(stage, step, Event("step_end", losses))

    def evaluate(self, stage: Stage, step: Step, metrics: Mapping[str, float]) -> None:
        """Report the metrics of an evaluation."""
        self._tell(stage, step, Event("evaluate", metrics))

    def resume(self, stage: Stage, step: Step, untold: Iterable[Event]) -> None:
        """Report the events of the last step to those that have not received them yet."""
        for event in untold:
            self._tell(stage, step, event)
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise the failure of a method or plugin, if there is one."""
        if self._failure is not None:
            raise self._failure
        if self.failed:
            wait()  # for the rank that failed: the connection to it will be lost

    def stage_end(self, stage: Stage, error: BaseException | None) -> None:
        """Report that a stage is over, and what ended it if it failed.

        Raises:
            BaseException: A method or plugin fails, after all have been told. If the stage itself
                failed, this is only said.
        """
        run = self._run()
        info = LiveStageInfo.of(stage, run.say)
        calls = [
            *_of_methods(stage, lambda method: method.on_stage_end(info, error)),
            *self._of_plugins("gkd_stage_end", stage, run=run, stage=info, error=error),
        ]
        failures = [failure for _, call in calls if (failure := _failure_of(call)) is not None]
        raised = failures[0] if failures and error is None else None
        for failure in failures:
            if failure is not raised:
                blame = self._registry.blame(failure) or described(failure)
                run.say(f"at the end of stage {stage.name}: {blame}")
        if raised is not None:
            raise raised

    def _tell(self, stage: Stage, step: Step, event: Event) -> None:
        """Report an event to all that have not received it yet, until one fails."""
        for name, call in self._listeners(stage, step, event):
            if not self.failed and name not in event.told:
                self._failure = _failure_of(call)
                self.failed = any_rank(self._failure is not None)
                event.told += [] if self.failed else [name]
        if self.failed:
            self.untold.append(event)

    def _listeners(
        self, stage: Stage, step: Step, event: Event
    ) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield the names of all who are told of an event, each with what tells them."""
        run = self._run()
        info = LiveStageInfo.of(stage, run.say)
        if event.name == "evaluate":
            yield from _of_methods(stage, lambda m: m.on_evaluate(info, step, dict(event.values)))
        hook, values = HOOKS[event.name]
        told = {"run": run, "stage": info, "step": step, values: event.values}
        yield from self._of_plugins(hook, stage, **told)

    def _of_plugins(
        self, hook: str, trained: Stage, **arguments: Any
    ) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield the name of every plugin with a hook, and a function that calls the hook.

        What a plugin draws at random in the call, or changes of the process or of what it is told,
        changes no training, and reaches no other plugin.
        """
        for plugin, call in self._registry.implementations(hook):
            own = {n: dict(v) if isinstance(v, Mapping) else v for n, v in arguments.items()}
            alone = partial(self._call_apart, plugin, hook, partial(call, **own))
            yield f"plugin {plugin.name}", partial(_call_seeded, trained, plugin.name, alone)

    def _call_apart(self, plugin: Plugin, hook: str, call: Callable[[], object]) -> object:
        def say(changed: str) -> None:
            self._run().say(f"plugin {plugin} changed {changed} in {hook}; the change is undone")

        with set_back(say):
            return call()


def _reason(method: MethodBase, answer: Any) -> str | None:
    """Return a method's reason to skip a stage: True or a number would be no reason."""
    wanted = "why the stage has nothing to train, or None to train"
    reason: str | None = one_of(method, "on_stage_start", answer, (str, NoneType), wanted)
    return reason


def _of_methods(
    stage: Stage, call: Callable[[MethodBase], T]
) -> Iterator[tuple[str, Callable[[], T]]]:
    """Yield the name of every combiner and method, and a function that calls it.

    What a method draws at random in the call changes no training.
    """
    for name, method in stage.objective.objects():
        yield name, partial(_call_seeded, stage, name, partial(call, method))


def _call_seeded(stage: Stage, name: str, call: Callable[[], T]) -> T:
    with seeded(name_seed(stage.config.seed, f"{stage.name} {name}"), stage.engine.device):
        return call()


def _failure_of(call: Callable[[], object]) -> BaseException | None:
    """Call something, and return what it raises unless that is an interrupt."""
    try:
        call()
    except (Exception, SystemExit) as failure:
        return failure
    return None
