"""The summary of a finished run: its comparison and its report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_core.analysis.compare import predict_and_compare
from gkd_core.analysis.comparison import Compared, Comparison
from gkd_core.analysis.exam import ComparedModel
from gkd_core.analysis.explanation import explain
from gkd_core.analysis.report import write_report
from gkd_core.analysis.verdict import verdict
from gkd_core.atomic import write_file
from gkd_core.distributed.ranks import is_first
from gkd_core.errors import PluginError
from gkd_core.evaluation.predictions import PREDICTIONS, STUDENT
from gkd_core.plugins.owners import described
from gkd_core.runs.run_files import OUTLINE, RESULTS
from gkd_core.training.stage_spec import BASELINE

if TYPE_CHECKING:
    from gkd_core.config.schema import Placement
    from gkd_core.runs.run import Run
    from gkd_core.training.stage_spec import TeacherSpec


@dataclass(frozen=True)
class RunSummary:
    """The summary of a finished run.

    Attributes:
        comparison: The comparison of its models; None if a plugin failed in it.
        report: Path of its report.
        failure: The error that ended the comparison.
        verdict: Whether distillation paid, and what to try, in sentences.
    """

    comparison: Comparison | None
    report: Path
    failure: Exception | None = None
    verdict: Sequence[str] = ()


def needs_all_ranks(run: Run) -> bool:
    """Return whether several processes share a model of a finished run."""
    return not all(model.is_whole for model in compared_models(run))


def summarize_run(run: Run) -> RunSummary | None:
    """Compare the models of a finished run; write `results.json` and the files beside it.

    These are `predictions/`, `outline.txt` and `report.html`. The report is also written if plugins
    fail meanwhile, and says so.

    If `needs_all_ranks`, every process must call this; only the first writes files and returns a
    summary.
    """
    compared, failure = _compared(run)
    if not is_first():
        return None
    comparison = None if compared is None else compared.comparison
    said = [] if compared is None else verdict(run, compared)
    if compared is not None:
        compared.with_intervals().save(run.directory / RESULTS)
        compared.predictions.write(run.directory / PREDICTIONS)
    outline = explain(run.outline)
    write_file(run.directory / OUTLINE, outline)
    files, failures = _added_by_plugins(run)
    if failure is not None:
        failures.insert(0, f"the models could not be compared: {run.registry.blame(failure)}")
    for failed in failures:
        run.recorder.say(failed)
    report = write_report(run, compared, outline, files, failures)
    _track(run, comparison, [report, *files])
    return RunSummary(comparison, report, failure, said)


def _compared(run: Run) -> tuple[Compared | None, Exception | None]:
    """Return the comparison of a run's models, or the error of a plugin that made it impossible."""
    models = list(compared_models(run))
    try:
        adapters = run.registry.sites
        compared = predict_and_compare(
            run.last, models, first_teacher(run), adapters, run.last.sampling, layers=True
        )
        return compared, None
    except Exception as error:
        if run.registry.blame(error) is None:
            raise
        return None, error


def _added_by_plugins(run: Run) -> tuple[list[Path], list[str]]:
    """Return the files that plugins add to the report, and what failed."""
    files: list[Path] = []
    failures = []
    for plugin, call in run.registry.implementations("gkd_report"):
        try:
            files += [_existing(path) for paths in call(run=run.info) for path in paths]
        except (Exception, SystemExit) as error:
            blame = run.registry.blame(error) or f"plugin {plugin}: {described(error)}"
            failures.append(f"nothing was added to the report: {blame}")
    return files, failures


def _track(run: Run, comparison: Comparison | None, files: Iterable[Path]) -> None:
    """Give the results and the report to the run's trackers."""
    if comparison is not None:
        run.recorder.summarize(
            {
                f"{comparison.split}/{metric}/{row.name}": value
                for row in comparison.rows
                for metric, value in row.metrics.items()
            }
        )
    for file in files:
        run.recorder.add_file(file)


def _existing(path: object) -> Path:
    if not isinstance(path, Path) or not path.exists():
        raise PluginError(f"gkd_report must return paths of files that exist, not {path!r}")
    return path


def _live_teachers(run: Run) -> list[TeacherSpec]:
    """Return the teachers that can be evaluated: of others there are no weights."""
    return [teacher for teacher in run.teachers if teacher.source is None]


def first_teacher(run: Run) -> str | None:
    """Return the name of the teacher with which the models of a run are compared."""
    return next((teacher.called for teacher in _live_teachers(run)), None)


def compared_models(run: Run) -> Iterator[ComparedModel]:
    """Yield the models of a run: its teachers, the baseline if there is one, and the student."""
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
            teacher.called,
            teacher.vocabulary,
            teacher.is_shared,
        )
    students = {STUDENT: (f"student, {run.methods}", str(run.student))}
    for spec in run.specs:
        if spec.name == BASELINE:
            baseline = ("student, labels only", str(run.locations.student(spec)))
            students = {BASELINE: baseline, **students}
    tokenizer, trusts = last.tokenizer, last.trusts_student
    for called, (name, place) in students.items():
        yield ComparedModel(name, place, tokenizer, trusts, parallel.tensor, placement, called)
