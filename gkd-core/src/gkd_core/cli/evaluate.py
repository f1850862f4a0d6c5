"""`gkd eval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gkd_core.cli.json_output import json_option
from gkd_core.cli.new_directory import new_directory
from gkd_core.cli.numeric import WholeRange
from gkd_core.cli.options import RunOptions, file_options, show_warnings
from gkd_core.named_path import named_path

if TYPE_CHECKING:
    from gkd_core.analysis.comparison import Compared
    from gkd_core.analysis.subjects import Named, Subjects
    from gkd_core.config.resolve import Resolved, ResolvedStage
    from gkd_core.config.schema import TaskConfig
    from gkd_core.evaluation.pairs import ModelPair
    from gkd_core.evaluation.samples import Sampling
    from gkd_core.kinds.task_kind import TaskKind

SPLITS = ("validation", "test")
TRUST = ".trust_remote_code"


@click.command(name="eval")
@click.argument("model")
@file_options
@click.option("--task", help="Task by name, such as superglue/rte.")
@click.option("--data", help="Rows to evaluate on: jsonl, csv, tsv, parquet, txt.")
@click.option(
    "--against", metavar="MODEL", help="Compare with another model, or with stored predictions."
)
@click.option(
    "--samples", type=WholeRange(1), help="Number of texts that a language model continues."
)
@click.option(
    "--tasks",
    metavar="NAMES",
    help="Tasks of lm-evaluation-harness, or YAML files that define tasks, separated by commas.",
)
@click.option(
    "--num-fewshot", type=WholeRange(0), help="With --tasks: number of examples in a prompt."
)
@click.option(
    "--limit", type=WholeRange(1), help="With --tasks: maximum number of rows of each task."
)
@click.option(
    "--apply-chat-template", is_flag=True, help="With --tasks: ask in the form of conversations."
)
@click.option("--include-path", help="With --tasks: folder with additional tasks.")
@click.option("--output", help="New directory for the predictions of each model for each row.")
@json_option()
def evaluate(
    model: str,
    files: tuple[Path, ...],
    settings: tuple[str, ...],
    data: str | None,
    task: str | None,
    against: str | None,
    samples: int | None,
    output: str | None,
    as_json: bool,
    **harness: Any,
) -> dict[str, Any] | None:
    """Evaluate a model on the test rows of a task.

    MODEL is a directory, a hub id, or a run. The models of a run are evaluated again on its rows;
    so is RUN/student or RUN/teacher alone. FILE (the configuration of a run), --task and --set
    select other rows; --data selects all rows of a file. If there are no test rows, the validation
    rows are used. Nothing is written without --output.
    """
    if against == model:
        raise click.UsageError("--against must name another model")
    if _asks_harness(harness, settings, files or data or task or samples):
        return _run_harness(model, against, settings, harness, output, as_json)
    from gkd_core.analysis.compare import predict_and_compare
    from gkd_core.analysis.findings import Findings
    from gkd_core.analysis.kept import compare_with_kept, find_kept
    from gkd_core.analysis.subjects import find_named
    from gkd_core.plugins import registry

    place = None if output is None else new_directory(output)
    named = find_named(model)
    kept = None if against is None else find_kept(against)
    resolved = _resolve(named, files, settings, data, task)
    show_warnings(resolved)
    others = [find_named(against)] if against is not None and kept is None else []
    whole = named.is_run and against is None and not files
    subjects = _subjects(named, others, resolved, whole)
    kind = subjects.spec.kind
    _check_samples(samples, kind)
    compared = predict_and_compare(
        subjects.spec,
        subjects.models,
        subjects.judge,
        registry().sites,
        None if samples is None else _sampling(samples, subjects.spec.config.task.check),
    )
    if place is not None:
        compared.predictions.write(place)
    if kept is not None:
        findings = Findings(compared, kind, *compare_with_kept(compared, subjects.spec, kept))
    else:
        findings = Findings(compared, kind, None if against is None else _pair(compared, kind))
    if as_json:
        return findings.as_json()
    findings.show()
    return None


def _asks_harness(harness: dict[str, Any], settings: Sequence[str], rows: object) -> bool:
    """Return whether tasks of lm-evaluation-harness are asked for, which bring their own rows."""
    if harness["tasks"] is None:
        given = [name for name, value in harness.items() if value]
        if given:
            raise click.UsageError(f"--{given[0].replace('_', '-')} belongs to --tasks")
        return False
    others = [text for text in settings if not text.partition("=")[0].endswith(TRUST)]
    if rows or others:
        raise click.UsageError(
            "--tasks has its own rows and settings: omit FILE, --task, --data, --samples and "
            f"--set, except {TRUST.removeprefix('.')}"
        )
    return True


def _run_harness(
    model: str,
    against: str | None,
    settings: tuple[str, ...],
    harness: dict[str, Any],
    output: str | None,
    as_json: bool,
) -> dict[str, Any] | None:
    """Evaluate language models on tasks of lm-evaluation-harness."""
    from rich.console import Console

    from gkd_core.analysis.lm_harness import HarnessOptions, run_harness
    from gkd_core.analysis.subjects import find_named, language_models
    from gkd_core.plugins import registry

    place = None if output is None else new_directory(output)
    options = HarnessOptions(**harness | {"tasks": harness["tasks"].split(",")})
    named = [find_named(name) for name in (against, model) if name is not None]
    kind = next(kind for kind in registry().kinds.values() if kind.generates)
    resolved = [_resolve(each, (), settings, None, None) for each in named]
    findings = run_harness(language_models(named, resolved, registry()), kind, options)
    if place is not None:
        findings.write(place)
    if as_json:
        return findings.as_json()
    Console(highlight=False).print(findings.table())
    return None


def _resolve(
    named: Named,
    files: tuple[Path, ...],
    settings: tuple[str, ...],
    data: str | None,
    task: str | None,
) -> Resolved:
    """Return the configuration of the rows: that of the files, or else of the run.

    Code of models runs only where the user says so now: the run may be somebody else's.
    """
    from gkd_core.analysis.subjects import without_trust

    base = [] if files else named.config
    flags = {"data": data, "task": task}
    if base and data is not None and Path(data).is_file():
        del flags["data"]  # the rows to train on, which name the classes, stay those of the run
    resolved = RunOptions(files, None, settings, flags).resolve(base=base)
    if not _trusts(resolved, bool(files) or named.run is None):
        resolved = without_trust(resolved)
    *before, last = resolved.stages
    config = last.config.model_copy(update={"task": _task(last, data, bool(base))})
    return replace(resolved, stages=(*before, replace(last, config=config)))


def _task(stage: ResolvedStage, data: str | None, in_run: bool) -> TaskConfig:
    """Return the task, with test rows from the file `data` unless --set names others.

    The rows of a run give way to those of a data set that `data` names.
    """
    from gkd_core.config.settings import DEFAULT, Level

    task = stage.config.task
    is_file = data is not None and Path(data).is_file()
    if data is None or not (is_file or in_run):
        return task
    levels = {name: stage.origins.get(f"task.{name}", DEFAULT).level for name in SPLITS}
    rows = data if is_file else None
    given = {name: rows for name, level in levels.items() if level < Level.COMMAND_LINE}
    if is_file and _is_gone(task):
        given["train"] = data  # the model names the classes
    return task.model_copy(update=given)


def _is_gone(task: TaskConfig) -> bool:
    """Return whether the rows that a run was trained on are no longer where they were."""
    from gkd_core.config.schema import task_name
    from gkd_core.data.hub import Hub

    is_local = task.train is not None and task_name(task) != Hub.name
    return is_local and not named_path(str(task.train)).exists()


def _subjects(named: Named, others: Sequence[Named], resolved: Resolved, whole: bool) -> Subjects:
    """Return the models to evaluate: all of a run, or one, perhaps against another."""
    from gkd_core.analysis.subjects import EVALUATED, alone, of_run, trusts_code
    from gkd_core.plugins import registry
    from gkd_core.runs.spec_builder import SpecBuilder

    if whole and named.run is not None:
        return of_run(named.run, resolved, registry())
    trusts = any(map(trusts_code, resolved.stages))
    models = [each.model(registry(), trusts) for each in (*others, named)]
    return alone(SpecBuilder(registry()), resolved, models, EVALUATED)


def _trusts(resolved: Resolved, configured: bool) -> bool:
    """Return whether the user lets code of models run.

    Args:
        resolved: The configuration.
        configured: Whether all of it is the user's.
    """
    from gkd_core.analysis.subjects import trusts_code
    from gkd_core.config.settings import Level

    least = Level.FILE if configured else Level.COMMAND_LINE
    return any(
        origin.level >= least
        for stage in filter(trusts_code, resolved.stages)
        for name, origin in stage.origins.items()
        if name.endswith(TRUST)
    )


def _check_samples(samples: int | None, kind: TaskKind) -> None:
    from gkd_core.errors import ConfigError

    if samples is not None and not kind.generates:
        raise ConfigError(
            f"--samples needs a model that continues texts, which models for {kind} do not. Omit it"
        )


def _sampling(rows: int, check: str | None) -> Sampling:
    """Return the number of samples that are written, and the check of them (`task.check`)."""
    from gkd_core.evaluation.answer_check import answer_check
    from gkd_core.evaluation.samples import Sampling

    return Sampling(rows, check=None if check is None else answer_check(check))


def _pair(compared: Compared, kind: TaskKind) -> ModelPair:
    """Return the comparison of the model with the one it is set against, which comes first."""
    from gkd_core.evaluation.pairs import compare_pair

    other, own = compared.predictions.models
    measures = compared.measures
    known = (measures[own], measures[other]) if len(measures) == 2 else None
    return compare_pair(compared.predictions, (own, other), kind, known)
