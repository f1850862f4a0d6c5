"""Runs in several processes: only the first error is reported, once."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

import click

from gkd_core.cli.errors import (
    SPOKEN,
    Interrupted,
    RankDied,
    RankHangs,
    exit_status,
    printable,
)
from gkd_core.distributed.rank_info import RankInfo, read_launcher_env
from gkd_core.errors import ConfigError
from gkd_core.lease import TOKEN, Lease
from gkd_core.parallel.launch import obey_launcher, show_on_demand
from gkd_core.stop_signals import heeded

if TYPE_CHECKING:
    from gkd_core.config.resolve import Resolved

FRAMES = 8
"""Calls that are shown of where a rank waited."""

_distributed = False
"""Whether PyTorch has started threads here to talk to other processes."""


@contextmanager
def ending() -> Iterator[None]:
    """End a process that has talked to others without finalizing the interpreter.

    PyTorch's threads take the GIL to release a tensor or to return from C++. Until Python 3.14, one
    that does so while the interpreter is finalized aborts the process: "terminate called without an
    active exception". Destroying the process groups is not enough, since whatever refers to one
    keeps its threads, and it would wait for a collective that another rank no longer joins.
    """
    try:
        yield
    except SystemExit as stop:
        if _distributed and (stop.code is None or isinstance(stop.code, int)):
            _end_process(stop.code or 0)
        raise
    except BaseException as error:
        if _distributed:
            sys.excepthook(type(error), error, error.__traceback__)
            _end_process(exit_status(error))
        raise


def _end_process(status: int) -> NoReturn:
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)


@contextmanager
def among_ranks() -> Iterator[None]:
    """Join the process group if a launcher started several ranks; heed signals.

    Raises:
        SystemExit: Another rank failed first and has reported the error.
        RankDied: Another rank is gone without having reported an error.
    """
    obey_launcher(os.environ)
    info = read_launcher_env(os.environ)
    with heeded():
        if info is None:
            yield
        else:
            with _in_group(info):
                yield


@contextmanager
def _in_group(info: RankInfo) -> Iterator[None]:
    """Join the process group; of several ranks that fail, the first reports why."""
    from gkd_core.distributed.ranks import (
        first_failure,
        init_process_group,
        leave,
        lost_connection,
        wait_for_reason,
        waited_in_vain,
    )

    global _distributed
    _distributed = True
    show_on_demand()
    try:
        init_process_group(info)
        yield
        leave()
    except (KeyboardInterrupt, Interrupted) as error:
        # The others, whose connection breaks, wait for this note.
        status = first_failure(exit_status(error))
        if status is not None:
            raise SystemExit(status) from error
        raise
    except Exception as error:
        late = waited_in_vain(error)
        if late:
            _show_stack(info.rank, error)
        unexplained = lost_connection(error) and not wait_for_reason()
        status = first_failure(exit_status(error))
        if status is not None:
            raise SystemExit(status) from error
        if unexplained:
            raise RankDied(f"another process of the run is gone ({error})") from error
        if late:
            raise RankHangs(_hangs(error)) from error
        raise


def _show_stack(rank: int, error: Exception) -> None:
    """Show where this rank waited for the others."""
    stack = "".join(traceback.format_tb(error.__traceback__, limit=-FRAMES))
    click.echo(printable(f"Process {rank} waited here:\n{stack}"), nl=False, err=True)


def _hangs(error: Exception) -> str:
    notes = getattr(error, "__notes__", ())
    message = (
        "a process hangs: others have waited for it in vain. If it only needs more time, raise "
        "parallel.timeout"
    )
    return ". ".join([message, *notes])


def ranks_to_start(resolved: Resolved) -> int:
    """Return the number of processes to start for a run; 0 to run it in this process.

    Raises:
        ConfigError: A launcher has started a different number than configured.
    """
    count = resolved.config.parallel.nproc
    if read_launcher_env(os.environ) is not None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
        if count not in (1, here):
            raise ConfigError(
                f"parallel.nproc is {count} ({resolved.origin('parallel.nproc')}), but {here} "
                "processes were started here. Remove it if a launcher starts them"
            )
        return 0
    zero = any(stage.config.parallel.zero for stage in resolved.stages)
    return count if zero or count > 1 else 0


def start_ranks(count: int, lease: Lease, accepts: bool) -> None:
    """Run the configuration of a run directory in several processes.

    Args:
        count: Number of processes.
        lease: The lease of the run directory.
        accepts: Whether the run goes on although something has changed.

    Raises:
        SystemExit: A process failed and has reported the error.
        KeyboardInterrupt: The processes were asked to stop before they could say so.
        RankDied: A process was killed.
    """
    from gkd_core.parallel.launch import start_ranks

    global _distributed
    _distributed = True
    accept = ["--accept-changes"] if accepts else []
    arguments = ["run", "--resume", *accept, "--output", str(lease.path)]
    failure = start_ranks(count, arguments, {TOKEN: lease.token})
    if failure is None:
        return
    if failure.status in SPOKEN:
        raise SystemExit(failure.status)
    if failure.stopped:
        raise KeyboardInterrupt
    how = f"was killed by {failure.killer}" if failure.killer else f"ended with {failure.status}"
    place = shlex.quote(str(lease.path))
    raise RankDied(
        f"process {failure.rank} of {count} {how}, so the others were terminated. If it ran out "
        "of memory, use smaller micro-batches (training.accumulation). Continue with: gkd run "
        f"--resume --output {place}"
    )
