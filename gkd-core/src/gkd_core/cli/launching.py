"""Options of commands whose work is done in cells, which a launcher starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gkd_core.cli.errors import Stopped
from gkd_core.cli.numeric import WholeRange
from gkd_core.cli.options import assignment

if TYPE_CHECKING:
    from gkd_core.contract.launcher import Launcher
    from gkd_core.launchers.shard import Shard

Command = TypeVar("Command", bound=Callable[..., Any])


def launch_options(default: str | None) -> Callable[[Command], Command]:
    """Add what says who starts cells, and how many, to a command.

    Args:
        default: The launcher if none is named; None if the command then starts none.
    """
    without = "" if default else " [none: this process does the work]"
    about = f"The launcher that starts the cells.{without}"
    named = click.option("--launcher", default=default, show_default=bool(default), help=about)

    def decorate(command: Command) -> Command:
        for option in reversed((named, *_OPTIONS)):
            command = option(command)
        return command

    return decorate


def make_launcher(name: str, options: Sequence[str]) -> Launcher:
    """Return the launcher that options name."""
    from gkd_core.plugins import registry

    return registry().make_launcher(name, dict(assignment(each, "--option") for each in options))


def share_of(shard: str | None, shards: int | None) -> Shard:
    """Return the share that options ask for."""
    from gkd_core.launchers.shard import read_shard

    return read_shard(shard, shards, os.environ)


@contextmanager
def stoppable() -> Iterator[None]:
    """Stop cells in order when the command is asked to stop, and say how to go on."""
    from gkd_core.stop_signals import heeded

    try:
        with heeded():
            yield
    except KeyboardInterrupt as error:
        raise Stopped("stopped; repeat the command to continue") from error


_OPTIONS = (
    click.option(
        "--option",
        "options",
        multiple=True,
        metavar="NAME=VALUE",
        help="Set an option of the launcher; repeatable.",
    ),
    click.option("--jobs", type=WholeRange(1), help="Cells at a time. [as many as fit]"),
    click.option("--threads", type=WholeRange(1), help="Threads of a cell. [cores / jobs]"),
    click.option("--shard", metavar="INDEX/COUNT", help="Do only a share of the work: 0/4."),
    click.option(
        "--shards",
        type=WholeRange(1),
        help="Do one of this many shares of the work: the one in SLURM_ARRAY_TASK_ID or "
        "JOB_COMPLETION_INDEX.",
    ),
)
