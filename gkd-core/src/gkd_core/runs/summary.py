"""A one-line summary of each stage of a run: its methods, its teachers and its state."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gkd_core.runs.outline import StageOutline


def stage_summary(stages: Sequence[StageOutline], finished: Collection[str] = ()) -> list[str]:
    """Return a line per stage: its number, its methods and the stages it builds on.

    Args:
        stages: The outlines of the stages.
        finished: Names of the finished stages.
    """
    width = max(len(stage.name) for stage in stages)
    return [
        f"{number:>{len(str(len(stages)))}}  {stage.name:<{width}}  {_about(stage, finished)}"
        for number, stage in enumerate(stages, start=1)
    ]


def _about(stage: StageOutline, finished: Collection[str]) -> str:
    parts = [
        stage.method,
        f"taught by {', '.join(stage.taught_by)}" if stage.taught_by else "",
        f"goes on with {stage.goes_on_with}" if stage.goes_on_with else "",
        "finished" if stage.name in finished else "",
    ]
    return "; ".join(filter(None, parts))
