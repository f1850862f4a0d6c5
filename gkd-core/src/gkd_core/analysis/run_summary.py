"""The summary of a finished run: its comparison and its report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_core.analysis.comparison import ComparedModel, Comparison, compare_models
from gkd_core.analysis.explanation import explain
from gkd_core.analysis.report import write_report
from gkd_core.atomic import write_file
from gkd_core.distributed.ranks import is_first

if TYPE_CHECKING:
    from gkd_core.config.schema import Placement
    from gkd_core.runs.run import Run
    from gkd_core.training.stage_spec import TeacherSpec


@dataclass(frozen=True)
class RunSummary:
    """The summary of a finished run.

    Attributes:
        comparison: The comparison of its models.
        report: Path of its report.
    """

    comparison: Comparison
    report: Path


def needs_all_ranks(run: Run) -> bool:
    """Tell whether several processes share a model of a finished run."""
    return not all(model.is_whole for model in _compared_models(run))


def summarize_run(run: Run) -> RunSummary | None:
    """Compare the models of a finished run; write `results.json`, `outline.txt` and `report.html`.

    If `needs_all_ranks`, every process must call this; only the first writes files and returns a
    summary.
    """
    first = next((teacher.called for teacher in _live_teachers(run)), None)
    models = list(_compared_models(run))
    comparison = compare_models(run.last, models, first, run.registry.sites)
    if not is_first():
        return None
    comparison.save(run.directory / "results.json")
    outline = explain(run.outline)
    write_file(run.directory / "outline.txt", outline)
    extra = [
        path
        for paths in run.registry.manager.hook.gkd_report(run=run.info)
        if paths is not None
        for path in paths
    ]
    return RunSummary(comparison, write_report(run, comparison, outline, extra))


def _live_teachers(run: Run) -> list[TeacherSpec]:
    """Return the teachers that can be evaluated: of others there are no weights."""
    return [teacher for teacher in run.teachers if teacher.source is None]


def _compared_models(run: Run) -> Iterator[ComparedModel]:
    last, parallel = run.last, run.last.config.parallel
    placement: Placement = "zero3" if parallel.zero == 3 else "replicated"
    for teacher in _live_teachers(run):
        yield ComparedModel(
            teacher.called,
            teacher.trained,
            teacher.tokenizer,
            teacher.trust_remote_code,
            teacher.tensor,
            teacher.placement,
        )
    students = {f"student, {run.methods}": str(run.student)}
    if "baseline" in run.results:
        students = {"student, labels only": run.results["baseline"].student, **students}
    tokenizer, trusts = last.tokenizer, last.trusts_student
    for name, place in students.items():
        yield ComparedModel(name, place, tokenizer, trusts, parallel.tensor, placement)
