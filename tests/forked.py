"""Code in a process of its own, which starts at once.

multiprocessing's server of processes, which `on_ranks` uses too, has imported torch, transformers
and gkd; to import them again would take each process ten seconds.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from gkd_core.testing.ranks import PRELOADED

GKD = "from gkd_core.cli import main; main()"
"""The code of the command line."""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, or minus the signal that killed it, and its output."""

    returncode: int
    stdout: str
    stderr: str


def run(code, *arguments, cwd, **environment):
    """Run code with arguments and changes of the environment to its end."""
    with tempfile.TemporaryDirectory(prefix="gkd-forked-") as folder:
        said = Path(folder, "out"), Path(folder, "err")
        process = start(code, *arguments, cwd=cwd, said=said, **environment)
        process.join()
        return Ended(process.exitcode, *(path.read_text() for path in said))


def start(code, *arguments, cwd, said=(os.devnull, os.devnull), **environment):
    """Start code; return its process. `said`: the files of its standard output and error."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    argv = ["-c", *map(str, arguments)]
    own = os.environ | environment
    process = context.Process(target=_execute, args=(code, argv, str(cwd), said, own))
    process.start()
    return process


def _execute(code, argv, cwd, said, environment):
    gc.freeze()  # as ranks do
    for stream, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = argv
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    exec(compile(code, "-c", "exec"), {"__name__": "__main__"})
