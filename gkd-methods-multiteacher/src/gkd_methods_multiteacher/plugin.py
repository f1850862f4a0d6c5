"""The methods, combiners, procedures and recipes that this package registers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_core.api import hookimpl

if TYPE_CHECKING:
    from gkd_core.api import Method, Procedure, RunInfo, RunOutline, TeacherCombiner


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
    from gkd_methods_multiteacher.route import Route
    from gkd_methods_multiteacher.tmkd import TMKD
    from gkd_methods_multiteacher.uncertainty import Uncertainty

    return [Average, DenseGuidance, MTBERT, RLKD, Route, TMKD, Uncertainty]


@hookimpl
def gkd_register_recipes() -> Iterable[Path | type[Procedure]]:
    """Return the recipe files and the procedures that they use."""
    from gkd_methods_multiteacher.autodisc.procedure import AutoDiscStages
    from gkd_methods_multiteacher.dgkd import DGKD
    from gkd_methods_multiteacher.takd import TAKD

    recipes = sorted((Path(__file__).parent / "recipes").glob("*.toml"))
    return [*recipes, AutoDiscStages, DGKD, TAKD]


@hookimpl
def gkd_check_outline(outline: RunOutline) -> None:
    """Reject a search of `autodisc` within a student that is itself a slice."""
    from gkd_methods_multiteacher.autodisc.outline import check

    check(outline)


@hookimpl
def gkd_report(run: RunInfo) -> Iterable[Path]:
    """Add the table and plot of `autodisc` to the report."""
    from gkd_methods_multiteacher.autodisc.report import write_report

    return write_report(run)
