"""`PluginHooks`: notifies plugins of the events of a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pluggy import PluginManager

    from gkd_core.contract.run_info import RunInfo
    from gkd_core.contract.step import Step
    from gkd_core.training.stage import Stage


class PluginHooks:
    """Calls the hooks of all plugins with read-only views of the run and the stage.

    Args:
        manager: The plugin manager.
        run: Returns the current view of the run.
    """

    def __init__(self, manager: PluginManager, run: Callable[[], RunInfo]) -> None:
        self._hook = manager.hook
        self._run = run

    def stage_start(self, stage: Stage) -> None:
        """Announce the first step of a stage, before it begins."""
        self._hook.gkd_stage_start(run=self._run(), stage=stage.info)

    def step_end(self, stage: Stage, step: Step, losses: Mapping[str, float]) -> None:
        """Report the losses of a step."""
        self._hook.gkd_step_end(run=self._run(), stage=stage.info, step=step, losses=losses)

    def evaluate(self, stage: Stage, step: Step, metrics: Mapping[str, float]) -> None:
        """Report the metrics of an evaluation."""
        self._hook.gkd_evaluate(run=self._run(), stage=stage.info, step=step, metrics=metrics)

    def stage_end(self, stage: Stage, error: BaseException | None) -> None:
        """Announce the end of a stage, with its error if it failed."""
        self._hook.gkd_stage_end(run=self._run(), stage=stage.info, error=error)
