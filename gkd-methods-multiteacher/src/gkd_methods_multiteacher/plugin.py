"""The methods, combiners, procedures and recipes that this package registers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_core import hookimpl

if TYPE_CHECKING:
    from gkd_core import Method, Procedure, Step, TeacherCombiner
    from gkd_core.runs.outline import RunOutline
    from gkd_core.runs.run import Run
    from gkd_core.training.stage import Stage


@hookimpl
def gkd_register_methods() -> Iterable[type[Method]]:
    """Return the methods."""
    from gkd_methods_multiteacher.autodisc.sandwich import AutoDisc

    return [AutoDisc]


@hookimpl
def gkd_register_combiners() -> Iterable[type[TeacherCombiner]]:
    """Return the combiners; imported here, not at module level, because they need torch."""
    from gkd_methods_multiteacher.average import Average
    from gkd_methods_multiteacher.dgkd import DenseGuidance
    from gkd_methods_multiteacher.mt_bert import MTBERT
    from gkd_methods_multiteacher.rl_kd import RLKD
    from gkd_methods_multiteacher.tmkd import TMKD
    from gkd_methods_multiteacher.uncertainty import Uncertainty

    return [Average, DenseGuidance, MTBERT, RLKD, TMKD, Uncertainty]


@hookimpl
def gkd_register_recipes() -> Iterable[Path | type[Procedure]]:
    """Return the recipe files and the procedures that they use."""
    from gkd_methods_multiteacher.dgkd import DGKD
    from gkd_methods_multiteacher.takd import TAKD

    return [*sorted((Path(__file__).parent / "recipes").glob("*.toml")), DGKD, TAKD]


@hookimpl
def gkd_check_outline(outline: RunOutline) -> None:
    """Let `autodisc` reject a search within a student that is itself a slice."""
    from gkd_methods_multiteacher.autodisc.lifecycle import check

    check(outline)


@hookimpl
def gkd_stage_start(run: Run, stage: Stage) -> None:
    """Let `mt-bert` fine-tune its teachers and `autodisc` measure importance."""
    from gkd_methods_multiteacher import cofinetuning
    from gkd_methods_multiteacher.autodisc import lifecycle

    cofinetuning.begin(run, stage)
    lifecycle.begin(run, stage)


@hookimpl
def gkd_evaluate(run: Run, stage: Stage, step: Step) -> None:
    """Let `autodisc` evaluate its candidates."""
    from gkd_methods_multiteacher.autodisc.lifecycle import judge

    judge(stage, step)


@hookimpl
def gkd_stage_end(run: Run, stage: Stage, error: BaseException | None) -> None:
    """Let `autodisc` write the results of its candidates."""
    from gkd_methods_multiteacher.autodisc.lifecycle import write_candidates

    if error is None:
        write_candidates(stage)


@hookimpl
def gkd_report(run: Run) -> Iterable[Path]:
    """Add the table and plot of `autodisc` to the report."""
    from gkd_methods_multiteacher.autodisc.report import write_report

    return write_report(run)
