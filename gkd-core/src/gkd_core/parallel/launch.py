"""Launching of a run's ranks on this machine; if one fails, all are terminated.

Ranks meet in a file of a private folder and talk over the loopback interface, so that nothing on
the network can reach them. They do not outlive their launcher.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from gkd_core.distributed.rank_info import STORE
from gkd_core.stop_signals import SIGNALS

GRACE = 30
"""Seconds that ranks have to exit after one has failed, before they are killed."""

SHOW = signal.SIGUSR2
"""The signal on which a rank shows the stack of each thread."""

SHOWING = 1
"""Seconds that it may take."""

LAUNCHER = "GKD_LAUNCHER"
"""Variable with the process number of the launcher, by which a rank knows that gkd started it."""

POLL = 0.05
"""Seconds between two looks at the ranks."""

_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux."""


@dataclass(frozen=True)
class Failure:
    """The exit of the first rank that failed.

    Attributes:
        rank: Global rank.
        status: Its exit status, or minus the number of the signal that killed it.
        stopped: Whether the ranks were asked to stop.
    """

    rank: int
    status: int
    stopped: bool = False

    @property
    def killer(self) -> str | None:
        """Name of the signal that killed the rank, if one did."""
        return signal.Signals(-self.status).name if self.status < 0 else None


def started_by_gkd(environment: Mapping[str, str]) -> bool:
    """Return whether `start_ranks` launched this process, and reports its failure."""
    return LAUNCHER in environment


def obey_launcher(environment: Mapping[str, str]) -> None:
    """Prepare this process for its launcher, if gkd started it.

    The system kills it once the launcher is gone, however that ended.
    """
    if not started_by_gkd(environment):
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != int(environment[LAUNCHER]):
        os.kill(os.getpid(), signal.SIGKILL)


def show_on_demand() -> None:
    """Have this rank show on `SHOW` where it hangs."""
    faulthandler.register(SHOW, all_threads=True)


def start_ranks(
    count: int, arguments: Sequence[str], environment: Mapping[str, str]
) -> Failure | None:
    """Run `gkd` with the same arguments in several processes, and wait for them.

    Signals that ask for an end are passed on to them. Their output goes where the output of this
    process goes.

    Args:
        count: Number of processes.
        arguments: Command-line arguments after `gkd`.
        environment: Variables to set in addition.

    Returns:
        None if all succeeded, else how the first failed rank exited.
    """
    with tempfile.TemporaryDirectory(prefix="gkd-ranks-") as folder:
        common = {**_environment(count, Path(folder)), **environment}
        ranks: list[subprocess.Popen[bytes]] = []
        with _passed_on(ranks) as signals:
            try:
                for number in range(count):
                    own = {"RANK": str(number), "LOCAL_RANK": str(number)}
                    command = [sys.executable, "-m", "gkd_core.cli", *arguments]
                    ranks.append(subprocess.Popen(command, env=common | own))
                    if signals:
                        ranks[-1].send_signal(signals[-1])
                failed = _first_failure(ranks)
            finally:
                _end(ranks)
        return None if failed is None else Failure(*failed, stopped=bool(signals))


def _environment(count: int, folder: Path) -> dict[str, str]:
    """Return the variables of all ranks."""
    threads = max(1, (os.cpu_count() or 1) // count)
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "")
    interface = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback} if loopback else {}
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        **interface,
        LAUNCHER: str(os.getpid()),
        STORE: str(folder / "store"),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",  # DeepSpeed wants one, though nothing listens there
    }


@contextmanager
def _passed_on(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass on signals to the ranks; yield those that have come."""
    received: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for rank in ranks:
            rank.send_signal(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _first_failure(ranks: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Wait for the ranks; return the number and status of the first that fails."""
    while True:
        statuses = [rank.poll() for rank in ranks]
        failed = [(number, status) for number, status in enumerate(statuses) if status]
        if failed:
            # One that a signal killed can say nothing: that others lost it is a consequence.
            return min(failed, key=lambda each: each[1] > 0)
        if all(status == 0 for status in statuses):
            return None
        time.sleep(POLL)


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Terminate the ranks that still run; those that do not exit show where they hang, and die."""
    for rank in ranks:
        rank.terminate()
    if not _wait(ranks, GRACE):
        for number, rank in enumerate(ranks):
            _show(number, rank)
    for rank in ranks:
        rank.kill()
        rank.wait()


def _show(number: int, rank: subprocess.Popen[bytes]) -> None:
    """Have a rank that still runs show where it hangs."""
    if rank.poll() is None:
        print(f"Process {number} hangs here:", file=sys.stderr, flush=True)
        rank.send_signal(SHOW)
        _wait([rank], SHOWING)


def _wait(ranks: Sequence[subprocess.Popen[bytes]], seconds: float) -> bool:
    """Wait until the ranks have exited; return whether they have."""
    end = time.monotonic() + seconds
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
        time.sleep(POLL)
    return all(rank.poll() is not None for rank in ranks)
