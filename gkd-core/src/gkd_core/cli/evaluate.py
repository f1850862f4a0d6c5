"""`gkd eval`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gkd_core.cli.json_output import json_option
from gkd_core.cli.options import RunOptions, file_options, show_warnings

if TYPE_CHECKING:
    from gkd_core.config.resolve import ResolvedStage
    from gkd_core.config.schema import TaskConfig

SPLITS = ("validation", "test")


@click.command(name="eval")
@click.argument("directory")
@file_options
@click.option("--data", help="Rows to evaluate on: jsonl, csv, tsv, parquet, txt.")
@json_option()
def evaluate(
    directory: str,
    files: tuple[Path, ...],
    data: str | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> dict[str, Any] | None:
    """Evaluate the model in DIRECTORY on the test rows of a task.

    With --data, all rows of a file are used; with the config.toml of a run as FILE, those of the
    run. Without test rows, the validation rows are used. Nothing is written.
    """
    from rich.console import Console

    from gkd_core.analysis.comparison import ComparedModel, compare_models
    from gkd_core.plugins import registry
    from gkd_core.runs.spec_builder import SpecBuilder

    resolved = RunOptions(files, None, settings, {"data": data}).resolve()
    show_warnings(resolved)
    trusts = any(map(_trusts_code, resolved.stages))
    spec = SpecBuilder(registry()).build(_alone(resolved.stages[-1], directory, data, trusts))
    compared = [ComparedModel(directory, directory, spec.tokenizer, trusts)]
    comparison = compare_models(spec, compared, None, registry().sites)
    if as_json:
        return asdict(comparison)
    Console(highlight=False).print(comparison.table())
    return None


def _trusts_code(stage: ResolvedStage) -> bool:
    """Return whether code that comes with a model of a stage may run: its student may have it."""
    config = stage.config
    return config.student.trust_remote_code or any(t.trust_remote_code for t in config.teachers)


def _alone(stage: ResolvedStage, directory: str, data: str | None, trusts: bool) -> ResolvedStage:
    """Return a stage with a single model, and a method that is right for every task."""
    from gkd_core.config.schema import StudentConfig, TeacherConfig

    alone = {
        "method": "soft",  # needs no labels, which the rows to train on may lack
        "teachers": [TeacherConfig(model=directory, trust_remote_code=trusts)],
        "student": StudentConfig(),
        "task": _task(stage, data),
    }
    return replace(stage, config=stage.config.model_copy(update=alone))


def _task(stage: ResolvedStage, data: str | None) -> TaskConfig:
    """Return the task, with test rows from the file `data` unless --set names others."""
    from gkd_core.config.settings import DEFAULT, Level

    task = stage.config.task
    if data is None or not Path(data).is_file():
        return task
    levels = {name: stage.origins.get(f"task.{name}", DEFAULT).level for name in SPLITS}
    return task.model_copy(
        update={name: data for name, level in levels.items() if level < Level.COMMAND_LINE}
    )
