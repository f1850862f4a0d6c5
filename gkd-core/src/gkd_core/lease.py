"""Leases: who writes something that one process at a time may write.

A lease is a marker beside what it is about, which its holder refreshes. It passes to another
process once its holder is gone: at once on the same machine, and after `DURATION` seconds without a
sign of life on another. Nothing stops a holder that lost its lease, so it checks before it writes.
"""

from __future__ import annotations

import errno
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import OwnerRecord, SoftFileLease, Timeout

from gkd_core.errors import ConfigError, GkdError

DURATION = 60.0
"""Seconds without a sign of life after which a holder on another machine counts as gone."""

TOKEN = "GKD_LEASE"
"""Variable by which the ranks of a run know the lease that their launcher holds."""

_SINCE = "since="
"""The line that gkd adds to a marker; filelock ignores keys that it does not know."""


class HeldElsewhere(ConfigError):
    """Another process holds a lease."""


class LeaseLost(GkdError):
    """The lease of this process has passed to another process."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease.

    Attributes:
        host: Its machine.
        process: Its process number there.
        since: When it took the lease, in local time.
    """

    host: str
    process: int
    since: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"


@dataclass(frozen=True)
class Lease:
    """A lease that this process, or the launcher of this rank, holds.

    Attributes:
        path: What may be written.
        token: The name of the claim in the marker.
    """

    path: Path
    token: str

    def check(self) -> None:
        """Make sure that `path` may still be written.

        Raises:
            LeaseLost: Another process has taken the lease.
        """
        claim = _claim(self.path)
        for _ in range(2):
            owner = claim.owner
            if owner is not None and owner.token == self.token:
                return
            # Who looks whether a lease is stale sets the marker aside for a moment.
            time.sleep(0.2)
        now = holder(self.path)
        raise LeaseLost(
            f"{self.path} has passed to {now or 'another process'}, because this process gave no "
            f"sign of life for {DURATION:g} s. It has written nothing since; the other process "
            "continues"
        )


@contextmanager
def hold(path: Path, chosen_with: str = "--output", wait: bool = False) -> Iterator[Lease]:
    """Hold the lease of a file or directory, which need not exist.

    A rank whose launcher holds it takes part in that lease.

    Args:
        path: What is written meanwhile.
        chosen_with: The option that names another place.
        wait: Whether to wait for another process that holds it, as all do so for moments only.

    Raises:
        HeldElsewhere: Another process holds it, unless this one waits.
        OSError: The marker cannot be written.
    """
    if is_inherited(path):
        yield Lease(path, os.environ[TOKEN])
        return
    claim = _claim(path)
    if path.parent.is_file():  # filelock would say that it exists
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if wait:
            claim.acquire()
        else:
            _acquire(claim, path, chosen_with)
    except OSError as error:
        error.filename = str(path)  # nobody knows the marker
        error.add_note(f"Choose another place with {chosen_with}")
        raise
    try:
        _sign(Path(claim.lock_file))
        assert claim.token is not None
        yield Lease(path, claim.token)
    finally:
        claim.release()


def holder(path: Path) -> Holder | None:
    """Return the process that holds the lease of a file or directory, if one does."""
    claim = _claim(path)
    marker, owner = Path(claim.lock_file), claim.owner
    if owner is None or (not _is_here(owner) and _is_gone(owner, marker)):
        return None
    return Holder(_host(owner), owner.pid, _since(marker))


def refuse_held(path: Path) -> None:
    """Refuse to write something whose lease another process holds.

    Raises:
        HeldElsewhere: Another process holds it.
    """
    found = holder(path)
    if found is not None and not is_inherited(path):
        raise _held(path, found)


def is_inherited(path: Path) -> bool:
    """Return whether the launcher of this rank holds the lease of a file or directory."""
    owner = _claim(path).owner
    return owner is not None and owner.token == os.environ.get(TOKEN, "")


def _held(path: Path, found: Holder | None, chosen_with: str = "--output") -> HeldElsewhere:
    return HeldElsewhere(
        f"{path} is being written by {found or 'another process'}. Wait for it or stop it, or "
        f"choose another directory with {chosen_with}"
    )


def _claim(path: Path) -> SoftFileLease:
    """Return the lease of a path, which the process does not hold yet."""
    above = path.absolute().parent
    # What is mounted may lie in a folder that cannot be written.
    place = path if path.is_dir() and not os.access(above, os.W_OK) else above
    marker = place / f".{path.absolute().name}.lease"
    return SoftFileLease(marker, lease_duration=DURATION, thread_local=False)


def _acquire(claim: SoftFileLease, path: Path, chosen_with: str) -> None:
    """Take a lease; wait for a sign of life from a holder on another machine."""
    with suppress(Timeout):
        claim.acquire(timeout=0)
        return
    marker, owner, found = Path(claim.lock_file), claim.owner, holder(path)
    if owner is not None and _is_here(owner):
        raise _held(path, found, chosen_with)
    seen = _refreshed(marker)
    by = found or "another process"
    warnings.warn(f"{path} was being written by {by}: waiting for a sign of life", stacklevel=2)
    try:
        claim.acquire(
            timeout=DURATION * 1.5,
            poll_interval=DURATION / 100,
            cancel_check=lambda: _refreshed(marker) != seen,
        )
    except Timeout as error:
        raise _held(path, holder(path), chosen_with) from error


def _is_here(owner: OwnerRecord) -> bool:
    """Return whether a holder is a process of this machine that lives."""
    if _host(owner) != socket.gethostname():
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
    return True


def _is_gone(owner: OwnerRecord, marker: Path) -> bool:
    """Return whether a holder that is no process of this machine has probably ended.

    To take the lease, nobody relies on this: the clocks of two machines may differ.
    """
    is_own = owner.hostname == socket.gethostname()  # a container's has a suffix
    return is_own or time.time() - _refreshed(marker) > DURATION


def _host(owner: OwnerRecord) -> str:
    """Return the machine of a holder; filelock appends the namespace of a container."""
    return owner.hostname.partition("?")[0]


def _refreshed(marker: Path) -> float:
    """Return when a holder gave the last sign of life."""
    try:
        return marker.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _sign(marker: Path) -> None:
    """Note in a marker when the lease was taken."""
    with marker.open("a") as file:
        file.write(f"{_SINCE}{datetime.now().isoformat(' ', 'seconds')}\n")


def _since(marker: Path) -> str:
    try:
        lines = marker.read_text().splitlines()
    except OSError:
        return "a moment ago"
    found = (line.removeprefix(_SINCE) for line in lines if line.startswith(_SINCE))
    return next(found, "a moment ago")
