"""A run in several processes speaks with one voice: the first error is shown, once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_core.cli.errors import INTERRUPTED, SPOKEN, Interrupted, RankDied, exit_status
from gkd_core.distributed.rank_info import read_launcher_env
from gkd_core.errors import ConfigError
from gkd_core.parallel.launch import started_by_gkd

if TYPE_CHECKING:
    from gkd_core.config.resolve import Resolved


@contextmanager
def among_ranks() -> Iterator[None]:
    """Meet the other ranks, if a launcher started several.

    A rank that is told to end does so like one that fails: what it holds is put in order.

    Raises:
        SystemExit: Another rank failed first; it has said why.
        RankDied: Another rank is gone and has not said why.
    """
    info = read_launcher_env(os.environ)
    if info is None:
        yield
        return
    from gkd_core.distributed.ranks import (
        first_failure,
        init_process_group,
        leave,
        lost_connection,
        wait_for_reason,
    )

    before = signal.signal(signal.SIGTERM, _end)
    try:
        init_process_group(info)
        yield
        leave()
    except (KeyboardInterrupt, Interrupted) as error:
        if started_by_gkd(os.environ) or first_failure(INTERRUPTED) is not None:
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
    if read_launcher_env(os.environ) is not None:
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
