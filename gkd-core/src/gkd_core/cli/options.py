"""Options for settings, shared by `gkd run`, `gkd explain`, `gkd config` and others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gkd_core.cli.numeric import Whole, WholeOr

if TYPE_CHECKING:
    from gkd_core.config.resolve import Resolved

NAMED_TEACHER = re.compile(r"(?P<name>[a-z][a-z0-9_-]*)=(?P<model>.+)")

WEIGHTED = re.compile(r".+:\d+(\.\d+)?")
"""A source of rows with its weight, such as `a.jsonl:0.7`."""

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

FLAGS: Mapping[str, tuple[str, str]] = {
    "method": ("--method", "method"),
    "paper_values": ("--paper-values", "paper_values"),
    "teacher": ("--teacher", "teachers"),
    "student": ("--student", "student.model"),
    "student_layers": ("--student-layers", "student.layers"),
    "task": ("--task", "task.name"),
    "data": ("--data", "task.train"),
    "output": ("--output", "output.dir"),
    "track": ("--track", "tracking.sinks"),
    "baseline": ("--baseline", "baseline"),
    "probe": ("--probe", "probe.features"),
    "seed": ("--seed", "seed"),
    "nproc": ("--nproc", "parallel.nproc"),
}
"""The flag and the setting of each parameter name."""


@dataclass(frozen=True)
class RunOptions:
    """The command-line options of a run.

    Attributes:
        files: Configuration files.
        recipe: Name of a recipe.
        settings: `key=value` arguments of `--set`.
        flags: Named flags that were given, by parameter name.
    """

    files: Sequence[Path]
    recipe: str | None
    settings: Sequence[str]
    flags: Mapping[str, Any]

    @property
    def flagged(self) -> dict[str, tuple[Any, str]]:
        """The settings that named flags give, by dotted key, each with its flag."""
        given = {name: how for name, how in FLAGS.items() if self.flags.get(name) not in (None, ())}
        found = {setting: (self._value(name), flag) for name, (flag, setting) in given.items()}
        cache = self.flags.get("teacher_cache")
        if cache is None:
            return found
        source = {"name": "cache", "path": cache}
        if "teachers" not in found:
            return {**found, "teacher.source": (source, "--teacher-cache")}
        (first, *others), flag = found["teachers"]
        return {**found, "teachers": ([{**first, "source": source}, *others], flag)}

    def resolve(self, base: Sequence[Path] = (), before: Resolved | None = None) -> Resolved:
        """Return the configuration, on top of other files.

        Args:
            base: The other files.
            before: The run in those files, if it is to be resumed.

        Raises:
            GkdError: A value is invalid.
        """
        from gkd_core.runs.resolved import resolve_run

        files = [*base, *self.files]
        return resolve_run(files, self.recipe, self.settings, self.flagged, before)

    def _value(self, name: str) -> Any:
        if name == "data":
            return _sources(self.flags[name])
        if name != "teacher":
            return self.flags[name]
        models = self.flags[name]
        return [_teacher(text, i + 1 if len(models) > 1 else None) for i, text in enumerate(models)]


def _teacher(text: str, number: int | None) -> dict[str, Any]:
    """Parse `NAME=MODEL` or `MODEL`; several unnamed ones are `teacher1`, `teacher2`, ..."""
    named = NAMED_TEACHER.fullmatch(text)
    if named is not None:
        return {**_place(named["model"]), "name": named["name"]}
    return _place(text) | ({} if number is None else {"name": f"teacher{number}"})


def _place(text: str) -> dict[str, Any]:
    """Return the settings of a model, or of a server that runs it."""
    if text.startswith(("http://", "https://")):
        return {"source": {"name": "server", "url": text}}
    return {"model": text}


def _sources(given: str | Sequence[str]) -> str:
    """Return one source as it is, and several with a weight each."""
    places = [given] if isinstance(given, str) else given
    if len(places) == 1:
        return places[0]
    return ",".join(place if WEIGHTED.fullmatch(place) else f"{place}:1" for place in places)


def run_options(command: Command) -> Command:
    """Add the options of a run to a command."""
    return _decorated(command, (_FILES, *_RUN, _SET))


def file_options(command: Command) -> Command:
    """Add configuration files and `--set` to a command."""
    return _decorated(command, (_FILES, _SET))


def study_options(command: Command) -> Command:
    """Add the options for what all cells of a study share to a command."""
    return _decorated(command, (*_MODELS_AND_DATA, _SET))


def show_warnings(resolved: Resolved) -> None:
    """Print the warnings of a configuration, one per line."""
    for warning in resolved.warnings:
        click.echo(f"Warning: {warning}", err=True)


def assignment(text: str, flag: str) -> tuple[str, Any]:
    """Return the name and the value of an argument `NAME=VALUE` of a flag.

    Raises:
        ConfigError: It is none.
    """
    from gkd_core.config.formats import toml_value
    from gkd_core.errors import ConfigError

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{flag} {text}: expected NAME=VALUE, such as `{flag} training.lr=1e-4`")
    return key.strip(), toml_value(value.strip())


def _decorated(command: Command, decorators: Sequence[Decorator]) -> Command:
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


_FILES = click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
_SET = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any setting; repeatable."
)
_MODELS_AND_DATA: Sequence[Decorator] = (
    click.option(
        "--teacher",
        multiple=True,
        metavar="[NAME=]MODEL",
        help="Directory or hub id; repeat for several teachers.",
    ),
    click.option("--student", help="Start the student from this checkpoint."),
    click.option(
        "--student-layers",
        type=WholeOr("half", "all"),
        metavar="NUMBER|half|all",
        help="Blocks of a student derived from the teacher.",
    ),
    click.option("--task", help="Task by name, such as superglue/rte."),
    click.option(
        "--data",
        multiple=True,
        metavar="PATH[:WEIGHT]",
        help="Training file (jsonl, csv, tsv, parquet, txt) or directory; repeat to mix several.",
    ),
)
_RUN: Sequence[Decorator] = (
    click.option(
        "--method",
        help="Sum of methods: pkd+soft, 2*pkd+0.5*soft. [soft+hard; soft without labels]",
    ),
    click.option("--recipe", help="Start from a shipped recipe."),
    click.option(
        "--paper-values",
        is_flag=True,
        default=None,
        help="Train with the recipe's values, even if the task adjusts recipes.",
    ),
    *_MODELS_AND_DATA,
    click.option(
        "--teacher-cache", metavar="DIR", help="Answers of the teacher that gkd cache has written."
    ),
    click.option("--output", help="Run directory. [runs/NAME-N]"),
    click.option(
        "--track",
        multiple=True,
        metavar="NAME",
        help="Also record the run with this tracker, such as wandb or mlflow; repeatable.",
    ),
    click.option(
        "--baseline/--no-baseline",
        default=None,
        help="Also train the same student on labels alone. [if that adds at most half the cost]",
    ),
    click.option(
        "--probe",
        multiple=True,
        metavar="all|FEATURE",
        help="Measure the distances of features from the teacher's: all, hidden[*], ...; "
        "repeatable.",
    ),
    click.option("--seed", type=Whole(), help="Seed of all random numbers. [1]"),
    click.option("--nproc", type=Whole(), help="Processes on this machine, one per GPU. [1]"),
)
