"""`PluginHooks`: tells methods and plugins what happens in a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from gkd_core.distributed.ranks import tell
from gkd_core.objective.objective import name_seed
from gkd_core.training.live_stage import LiveStageInfo, seeded

if TYPE_CHECKING:
    from pluggy import PluginManager

    from gkd_core.contract.method_base import MethodBase
    from gkd_core.contract.run_info import RunInfo
    from gkd_core.contract.step import Step
    from gkd_core.training.stage import Stage


class PluginHooks:
    """Tells the methods and combiners of a stage, and then all plugins, what happens.

    Args:
        manager: Knows the plugins.
        run: Returns the view of the run, as it is now.
    """

    def __init__(self, manager: PluginManager, run: Callable[[], RunInfo]) -> None:
        self._hook = manager.hook
        self._run = run

    def stage_start(self, stage: Stage) -> bool:
        """Tell that the first step of a stage is about to begin.

        Returns:
            Whether a method asks to skip the stage; the same on every rank.
        """
        run = self._run()
        skipped = self.methods_start(stage)
        if skipped:
            run.say(f"stage {stage.name}: {skipped}")
        self._hook.gkd_stage_start(run=run, stage=LiveStageInfo.of(stage, run.say))
        return skipped is not None

    def methods_start(self, stage: Stage) -> str | None:
        """Tell the methods only; return why one of them asks to skip the stage, if one does."""
        info = LiveStageInfo.of(stage, self._run().say)
        reasons = [method.on_stage_start(info) for method in _in_turn(stage)]
        return tell(next(filter(None, reasons), None))

    def step_end(self, stage: Stage, step: Step, losses: Mapping[str, float]) -> None:
        """Tell the losses of a step."""
        run = self._run()
        info = LiveStageInfo.of(stage, run.say)
        self._hook.gkd_step_end(run=run, stage=info, step=step, losses=losses)

    def evaluate(self, stage: Stage, step: Step, metrics: Mapping[str, float]) -> None:
        """Tell the metrics of an evaluation."""
        run = self._run()
        info = LiveStageInfo.of(stage, run.say)
        for method in _in_turn(stage):
            method.on_evaluate(info, step, metrics)
        self._hook.gkd_evaluate(run=run, stage=info, step=step, metrics=metrics)

    def stage_end(self, stage: Stage, error: BaseException | None) -> None:
        """Tell that a stage is over, and what ended it if it failed."""
        run = self._run()
        info = LiveStageInfo.of(stage, run.say)
        for method in _in_turn(stage):
            method.on_stage_end(info, error)
        self._hook.gkd_stage_end(run=run, stage=info, error=error)


def _in_turn(stage: Stage) -> Iterator[MethodBase]:
    """Yield every combiner and every method; what each draws at random changes no training."""
    for name, method in stage.objective.objects():
        with seeded(name_seed(stage.config.seed, f"{stage.name} {name}"), stage.engine.device):
            yield method
