"""Whether a disk has room for what is about to be written."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import ByteSize

from gkd_core.distributed.ranks import tell
from gkd_core.errors import ConfigError


def check_space(folder: Path, needed: float, what: str, advice: str) -> None:
    """Reject to write more than a disk has room for; every rank calls it.

    Args:
        folder: Where; it may not exist yet.
        needed: The bytes that are to be written.
        what: What they are, and the setting that asks for them.
        advice: What to do instead.

    Raises:
        ConfigError: Says how much is needed and how much is free, and where.
    """
    free = tell(free_space(folder))
    if needed > free:
        raise ConfigError(
            f"{what}: about {_readable(needed)} are to be written to {folder}, on a disk with "
            f"{_readable(free)} free. {advice}"
        )


def free_space(folder: Path) -> float:
    """Return the free bytes on the disk of a folder; infinity if the system does not tell.

    Args:
        folder: The folder; it may not exist yet.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return float("inf")


def _readable(size: float) -> str:
    return ByteSize(size).human_readable(separator=" ")
