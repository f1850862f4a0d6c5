"""The code that runs on a node of a cluster: it is sent by name, so it imports little."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gkd_core.parallel.launch import LAUNCHER

ENVIRONMENT = ("GKD_CACHE", "PYTHONPATH")
"""Variables of the command that cells need on other machines as well."""


@dataclass(frozen=True)
class Seen:
    """The view of a node: its folder and its gkd.

    Attributes:
        token: The content of the token file; empty if it is not there.
        version: The version of gkd.
    """

    token: str
    version: str


def look(token: str) -> Seen:
    """Return this node's view of the folder of cells, and its gkd."""
    import gkd_core

    path = Path(token)
    return Seen(path.read_text() if path.exists() else "", gkd_core.__version__)


def own_environment() -> dict[str, str]:
    """Return the variables of this process that cells need as well."""
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}


def run(
    command: Sequence[str], directory: str, environment: Mapping[str, str], threads: int
) -> int:
    """Run the command of a cell as a child, which dies with this process.

    Args:
        command: The command.
        directory: Its working directory.
        environment: Variables to set.
        threads: Threads that it may use.

    Returns:
        Its exit status.
    """
    own = {**environment, "OMP_NUM_THREADS": str(threads), LAUNCHER: str(os.getpid())}
    child = subprocess.Popen(command, cwd=directory, env={**os.environ, **own})
    try:
        return child.wait()
    except BaseException:  # the task is cancelled
        child.terminate()
        child.wait()
        raise
