"""Launching of a run's ranks on this machine; if one fails, all are terminated."""

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
"""Seconds that ranks have to exit after one has failed, before they are killed."""

RUN = "gkd-"
"""Prefix of the elastic agent's run id, by which a rank knows that gkd started it."""


@dataclass(frozen=True)
class Failure:
    """How the first failed rank exited.

    Attributes:
        rank: Global rank.
        status: Its exit status, or minus the number of the signal that killed it.
    """

    rank: int
    status: int

    @property
    def killer(self) -> str | None:
        """Name of the signal that killed the rank, if one did."""
        return signal.Signals(-self.status).name if self.status < 0 else None


def started_by_gkd(environment: Mapping[str, str]) -> bool:
    """Return whether `start_ranks` launched this process, and reports its failure."""
    return environment.get("TORCHELASTIC_RUN_ID", "").startswith(RUN)


def start_ranks(count: int, arguments: Sequence[str]) -> Failure | None:
    """Run `gkd` with the same arguments in several processes, and wait for them.

    PyTorch's elastic agent starts, monitors and terminates them; nothing is restarted. Their output
    goes where the output of this process goes.

    Args:
        count: Number of processes.
        arguments: Command-line arguments after `gkd`.

    Returns:
        None if all succeeded, else how the first failed rank exited.

    Raises:
        KeyboardInterrupt: This process received a termination signal; the ranks have exited.
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
            rdzv_endpoint="localhost:0",  # any free port, so that runs can share a machine
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
    """Silence the agent's loggers: a failing rank reports why, and the agent only repeats it."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
