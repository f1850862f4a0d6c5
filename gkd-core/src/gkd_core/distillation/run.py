"""`run`: what `gkd run` does, from Python."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from gkd_core.analysis.comparison import Comparison
from gkd_core.config.resolve import Resolved
from gkd_core.distillation.conduct import execute, recorder_of, run_directory
from gkd_core.distillation.given import (
    GivenData,
    GivenModel,
    is_loaded,
    place_of_data,
    place_of_model,
)
from gkd_core.errors import ConfigError
from gkd_core.models.load import load_teacher
from gkd_core.named_path import named_path
from gkd_core.plugins import registry
from gkd_core.runs.default_method import as_built
from gkd_core.runs.directory import free_directory, how_to_go_on, refuse_occupied
from gkd_core.runs.resolved import resolve_run
from gkd_core.runs.run import Run, prepare_run
from gkd_core.runs.run_files import CONFIG
from gkd_core.stop_signals import heeded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

INPUTS = ".inputs"
"""The suffix of a run directory's name for the models and rows that were loaded."""


@dataclass(frozen=True)
class Distilled:
    """A finished run.

    Attributes:
        student: The student, to evaluate or to train further.
        tokenizer: Its tokenizer.
        comparison: The student, its teachers and the baseline on the same rows;
            `comparison.table()` is the table that the command prints.
        verdict: Whether distillation paid, in sentences.
        directory: The run directory, which `gkd eval` and `gkd run --resume` accept.
        report: The report, an HTML page.
    """

    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    comparison: Comparison
    verdict: tuple[str, ...]
    directory: Path
    report: Path


def run(
    *,
    teacher: GivenModel | Mapping[str, GivenModel] | None = None,
    student: GivenModel | int | None = None,
    data: GivenData | None = None,
    method: str | None = None,
    recipe: str | None = None,
    file: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Distilled:
    """Distill a student as `gkd run` does, in this process.

    Models are directories, hub ids, or loaded models with their tokenizers; rows are files,
    directories, hub ids, or a `datasets.Dataset`. Those that are loaded are first written beside
    the run directory, in `NAME.inputs`, so that the run can be resumed and repeated.

    Args:
        teacher: The teacher, or several by name. Default: that of the task.
        student: A checkpoint to start from, or the number of blocks of a student that is made from
            the teacher. Default: as the task says, or all blocks.
        data: The rows to train on. Default: text that comes with Python.
        method: Sum of methods, such as `pkd+soft`.
        recipe: Name of a recipe.
        file: A run file (TOML, YAML, JSON); the other arguments override it.
        output: The run directory, which must be new. Default: `runs/NAME-N`.
        settings: Any other setting by its dotted name, such as `{"training.epochs": 1}`.

    Returns:
        The student, and how it compares.

    Raises:
        GkdError: The run is invalid, or cannot be finished.
        KeyboardInterrupt: It was stopped; a note says how to continue.
    """
    _check_types(method, recipe, file, output, settings)
    folder = None if output is None else named_path(os.fspath(output))
    if folder is None and any(map(is_loaded, (teacher, student, data))):
        folder = free_directory(recipe or method or "run")
    flags: dict[str, tuple[Any, str]] = {}
    if folder is not None:
        refuse_occupied(folder, "new")
        flags["output.dir"] = str(folder), "output="
    inputs = Path() if folder is None else folder.with_name(folder.name + INPUTS)
    with _no_inputs_without_a_run(inputs, folder):
        flags |= _teachers(teacher, inputs) | _student(student, inputs) | _data(data, inputs)
        if method is not None:
            flags["method"] = method, "method="
        for name, value in (settings or {}).items():
            if not isinstance(name, str):
                raise ConfigError(f"settings has the key {name!r}, which is no dotted name")
            if name in flags:
                raise ConfigError(f"{name} is given twice, by {flags[name][1]} and in settings")
            flags[name] = value, f"settings[{name!r}]"
        files = () if file is None else (Path(file),)
        return _run(resolve_run(files, recipe, flags=flags))


@contextmanager
def _no_inputs_without_a_run(inputs: Path, folder: Path | None) -> Iterator[None]:
    """Remove what was written beside a run directory if the run is refused.

    Args:
        inputs: Where it is written.
        folder: The run directory; None if nothing is written.
    """
    existed = inputs.exists()
    try:
        yield
    except BaseException:
        if folder is not None and not existed and not (folder / CONFIG).exists():
            shutil.rmtree(inputs, ignore_errors=True)
        raise


def _check_types(
    method: object, recipe: object, file: object, output: object, settings: object
) -> None:
    """Reject arguments of a type that they cannot have."""
    expected: dict[str, tuple[object, Any, str]] = {
        "method": (method, str, "a text"),
        "recipe": (recipe, str, "a text"),
        "file": (file, str | os.PathLike, "a path"),
        "output": (output, str | os.PathLike, "a path"),
        "settings": (settings, Mapping, "a mapping of dotted names to values"),
    }
    for name, (given, kind, wanted) in expected.items():
        if given is not None and not isinstance(given, kind):
            raise ConfigError(f"{name} is {given!r}, not {wanted}")


def _teachers(
    given: GivenModel | Mapping[str, GivenModel] | None, inputs: Path
) -> dict[str, tuple[Any, str]]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        table = {"model": place_of_model(given, inputs / "teacher", "teacher")}
        return {"teachers": ([table], "teacher=")}
    tables = [
        {"name": name, "model": place_of_model(one, inputs / name, f"teacher[{name!r}]")}
        for name, one in given.items()
    ]
    return {"teachers": (tables, "teacher=")}


def _student(given: GivenModel | int | None, inputs: Path) -> dict[str, tuple[Any, str]]:
    if given is None:
        return {}
    if isinstance(given, int):
        return {"student.layers": (given, "student=")}
    return {"student.model": (place_of_model(given, inputs / "student", "student"), "student=")}


def _data(given: GivenData | None, inputs: Path) -> dict[str, tuple[Any, str]]:
    if given is None:
        return {}
    place, task = place_of_data(given, inputs / "data")
    found: dict[str, tuple[Any, str]] = {"task.train": (place, "data=")}
    return found if task is None else {**found, "task.name": (task, "data=")}


def _run(resolved: Resolved) -> Distilled:
    """Execute a resolved run in this process."""
    _refuse_processes(resolved)
    for warning in resolved.warnings:
        warnings.warn(warning, stacklevel=3)
    with heeded():
        sinks = registry().make_sinks(resolved.config)
        specs = prepare_run(resolved, registry())
        resolved = as_built(resolved, specs)
        with run_directory(resolved, "new") as (directory, lease):
            recorder = recorder_of(resolved, directory, sinks, Console())
            run = Run(resolved, registry(), specs, directory, recorder, lease)
            try:
                with recorder.record(run.info, resolved.values()):
                    return _distilled(run)
            except (Exception, KeyboardInterrupt) as error:
                error.add_note(how_to_go_on(directory))
                raise


def _distilled(run: Run) -> Distilled:
    summary = execute(run)
    assert summary is not None, "this process is the only one"
    if summary.comparison is None:
        assert summary.failure is not None, "something failed"
        raise summary.failure
    last = run.last
    student = load_teacher(
        str(run.student), last.kind, last.data.classes, last.trusts_student, "the student"
    )
    return Distilled(
        student.requires_grad_(True),
        last.tokenizer,
        summary.comparison,
        tuple(summary.verdict),
        run.directory,
        summary.report,
    )


def _refuse_processes(resolved: Resolved) -> None:
    """Reject settings that need additional processes.

    Raises:
        ConfigError: The run asks for several processes, or for ZeRO.
    """
    count = resolved.config.parallel.nproc
    if count > 1 or any(stage.config.parallel.zero for stage in resolved.stages):
        raise ConfigError(
            f"parallel.nproc is {count} and parallel.zero {resolved.config.parallel.zero}, but "
            "gkd_core.run trains in one process; use the command gkd run"
        )
