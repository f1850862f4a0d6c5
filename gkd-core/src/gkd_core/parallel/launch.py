"""Start the ranks of a run on this machine, and end them all if one fails."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GRACE = 30
"""Seconds that ranks have to end when one has failed, before they are killed."""

RUN = "gkd-"
"""What the agent's name of a run begins with, so that a rank knows who started it."""


@dataclass(frozen=True)
class Failure:
    """How the first rank that failed ended.

    Attributes:
        rank: Its number.
        status: Its exit status, or minus the number of the signal that killed it.
    """

    rank: int
    status: int

    @property
    def killer(self) -> str | None:
        """Name of the signal that killed the rank, if one did."""
        return signal.Signals(-self.status).name if self.status < 0 else None


def started_by_gkd(environment: Mapping[str, str]) -> bool:
    """Tell whether `start_ranks` started this process, and speaks for it where it can."""
    return environment.get("TORCHELASTIC_RUN_ID", "").startswith(RUN)


def start_ranks(count: int, arguments: Sequence[str]) -> Failure | None:
    """Run `gkd` with the same arguments in several processes, and wait for them.

    They are started, watched and ended by PyTorch's elastic agent; nothing is restarted. What they
    print goes where the output of this process goes.

    Args:
        count: Number of processes.
        arguments: What follows `gkd`.

    Returns:
        None if all ended well, else how the first that did not ended.

    Raises:
        KeyboardInterrupt: This process was told to end; the ranks have ended.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _silence_agent()
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    with tempfile.TemporaryDirectory(prefix="gkd-ranks-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            run_id=f"{RUN}{uuid.uuid4().hex}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            shutdown_timeout=GRACE,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "gkd_core.cli", *arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            return Failure(rank, failure.exitcode)
        except SignalException as error:
            raise KeyboardInterrupt from error
    return None


def _silence_agent() -> None:
    """A rank that fails says why; what the agent has to say about it only repeats that."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
