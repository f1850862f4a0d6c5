"""The command line: one thin module per command.

torch is imported only when a command that needs it runs, so that `gkd --help` is immediate.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from gkd_core import __version__
from gkd_core.cli.errors import PluginFailed, printable, report
from gkd_core.cli.ranks import ending
from gkd_core.cli.threads import share_cores
from gkd_core.errors import suggest
from gkd_core.parallel.launch import started_by_gkd
from gkd_core.plugins import PluginWarning, registry

BUILT_IN = {
    "analyze": "gkd_core.cli.analyze:analyze",
    "bench": "gkd_core.cli.bench:bench",
    "cache": "gkd_core.cli.cache:cache",
    "clean": "gkd_core.cli.clean:clean",
    "config": "gkd_core.cli.config:config",
    "doctor": "gkd_core.cli.doctor:doctor",
    "eval": "gkd_core.cli.evaluate:evaluate",
    "explain": "gkd_core.cli.explain:explain",
    "export": "gkd_core.cli.export:export",
    "kinds": "gkd_core.cli.kinds:kinds",
    "methods": "gkd_core.cli.methods:methods",
    "new-method": "gkd_core.cli.new_method:new_method",
    "new-run": "gkd_core.cli.new_run:new_run",
    "optimizers": "gkd_core.cli.optimizers:optimizers",
    "plan": "gkd_core.cli.plan:plan",
    "plugins": "gkd_core.cli.plugins:plugins",
    "prune": "gkd_core.cli.prune:prune",
    "recipes": "gkd_core.cli.recipes:recipes",
    "replay": "gkd_core.cli.replay:replay",
    "run": "gkd_core.cli.run:run",
    "search": "gkd_core.cli.search:search",
    "study": "gkd_core.cli.study:study",
    "tasks": "gkd_core.cli.tasks:tasks",
}

HELP = """Distill large language models: a small student learns from one or several large teachers.

\b
gkd run                            distill on text that comes with Python
gkd run --teacher DIR --data FILE  distill your own teacher on your own data
gkd methods                        list the installed methods
"""  # click does not rewrap a paragraph that begins with a backspace


class Commands(click.Group):
    """Built-in commands, imported on use, and commands of plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*BUILT_IN, *_of_plugins()})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return a command by name, or None."""
        if name in BUILT_IN:
            module, _, attribute = BUILT_IN[name].partition(":")
            command: click.Command = getattr(import_module(module), attribute)
            return command
        return _of_plugins().get(name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name, or fail with the nearest known name."""
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            why = registry().why_missing(f"command {name!r}")
            meant = why or suggest(name, known).strip() or f"There are {', '.join(known)}."
            ctx.fail(f"No such command {name!r}. {meant}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a plugin may end the process in a command of its own only."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:
            blame = registry().blame(error)
            if blame is None or ctx.invoked_subcommand not in BUILT_IN:
                raise
            raise PluginFailed(blame) from error


def _of_plugins() -> Mapping[str, click.Command]:
    """Return the commands of plugins; those with the name of a built-in one are left out."""
    found = registry().commands
    for name in found.keys() & BUILT_IN.keys():
        registry().set_aside(found[name], f"command '{name}'", "gkd has a command of this name")
    return {name: command for name, command in found.items() if name not in BUILT_IN}


@click.group(cls=Commands, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gkd")
def gkd() -> None:
    """The group of all commands."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `gkd`: errors that users can fix are printed as one message, without a traceback.

    Args:
        arguments: Arguments after `gkd`; None: those of the process.

    Raises:
        SystemExit: Always: 0; 2 for invalid input; 1 for a full disk; 75 or 130 if interrupted.
    """
    share_cores()
    with ending(), warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            args = None if arguments is None else list(arguments)
            status = gkd.main(args, prog_name="gkd", standalone_mode=False)
        except Exception as error:
            status = report(error)
            if status is None:
                raise
        sys.exit(status)


def _show_warning(
    message: Warning | str, category: type[Warning], *_where: object, **_file: object
) -> None:
    """Print a warning on one line; of several processes, one says what is wrong with plugins."""
    told = started_by_gkd(os.environ) or os.environ.get("RANK", "0") != "0"
    if told and issubclass(category, PluginWarning):
        return
    click.echo(f"Warning: {printable(' '.join(str(message).split()))}", err=True)
