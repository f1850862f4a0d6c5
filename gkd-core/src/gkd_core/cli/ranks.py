"""A run in several processes speaks with one voice: the first error is shown, once."""

from __future__ import annotations

import atexit
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gkd_core.cli.errors import INTERRUPTED, SPOKEN, Interrupted, RankDied, exit_status
from gkd_core.errors import ConfigError
from gkd_core.parallel.launch import started_by_gkd
from gkd_core.parallel.place import find_place

if TYPE_CHECKING:
    from gkd_core.config.resolve import Resolved

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
    """Meet the other ranks, if a launcher started several.

    A rank that is told to end does so like one that fails: what it holds is put in order.

    Raises:
        SystemExit: Another rank failed first; it has said why.
        RankDied: Another rank is gone and has not said why.
    """
    place = find_place(os.environ)
    if place is None:
        yield
        return
    from gkd_core.parallel.ranks import (
        first_failure,
        join,
        leave,
        lost_connection,
        wait_for_reason,
    )

    global _distributed
    _distributed = True
    before = signal.signal(signal.SIGTERM, _end)
    try:
        join(place)
        yield
        leave()
    except (KeyboardInterrupt, Interrupted) as error:
        # The others, whose connection breaks, wait for this note.
        noted = first_failure(INTERRUPTED)
        if noted is not None or started_by_gkd(os.environ):
            raise SystemExit(INTERRUPTED) from error
        raise
    except Exception as error:
        unexplained = lost_connection(error) and not wait_for_reason()
        status = first_failure(exit_status(error))
        if status is not None:
            raise SystemExit(status) from error
        if unexplained:
            raise RankDied(f"another process of the run is gone ({error})") from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def ranks_to_start(resolved: Resolved) -> int:
    """Return how many processes this one should start for a run; 0 if it runs it itself.

    Raises:
        ConfigError: A launcher has started another number than the configuration says.
    """
    count = resolved.config.parallel.nproc
    if find_place(os.environ) is not None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
        if count not in (1, here):
            raise ConfigError(
                f"parallel.nproc is {count} ({resolved.origin('parallel.nproc')}), but {here} "
                "processes were started here. Leave it out where a launcher starts them"
            )
        return 0
    zero = any(stage.config.parallel.zero for stage in resolved.stages)
    return count if zero or count > 1 else 0


def start_ranks(count: int, directory: Path) -> None:
    """Run what is configured in a run directory in several processes.

    Raises:
        SystemExit: One failed, and has said why.
        RankDied: One was killed.
    """
    from gkd_core.parallel.launch import start_ranks

    global _distributed
    _distributed = True
    failure = start_ranks(count, ["run", "--resume", "--output", str(directory)])
    if failure is None:
        return
    if failure.status in SPOKEN:
        raise SystemExit(failure.status)
    how = f"was killed by {failure.killer}" if failure.killer else f"ended with {failure.status}"
    place = shlex.quote(str(directory))
    raise RankDied(
        f"process {failure.rank} of {count} {how}, so the others were ended. If that was for lack "
        "of memory, use smaller micro-batches (training.accumulation). Go on with: gkd run "
        f"--resume --output {place}"
    )


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)
