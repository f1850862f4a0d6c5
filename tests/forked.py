"""Code in a process of its own, which starts at once.

multiprocessing's server of processes, which `on_ranks` uses too, has imported torch, transformers
and gkd; to import them again would take each process ten seconds.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
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
    (ended,) = _run_all(code, arguments, cwd, [environment])
    return ended


def run_ranks(count, *arguments, cwd, code=GKD, **environment):
    """Run code on several ranks: how each ended."""
    return _run_all(code, arguments, cwd, environments(count, **environment))


def environments(count, **environment):
    """Return the environments of several ranks, as torchrun makes them; one rank needs none."""
    if count == 1:
        return [environment]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    ranks = ({"RANK": str(number), "LOCAL_RANK": str(number)} for number in range(count))
    return [environment | common | world | own for own in ranks]


def _run_all(code, arguments, cwd, environments):
    with tempfile.TemporaryDirectory(prefix="gkd-forked-") as folder:
        numbers = range(len(environments))
        said = [(Path(folder, f"out{number}"), Path(folder, f"err{number}")) for number in numbers]
        processes = [
            start(code, *arguments, cwd=cwd, said=files, **own)
            for files, own in zip(said, environments, strict=True)
        ]
        for process in processes:
            process.join()
        return [
            Ended(process.exitcode, *(path.read_text() for path in files))
            for process, files in zip(processes, said, strict=True)
        ]


def start(code, *arguments, cwd, said=(os.devnull, os.devnull), **environment):
    """Start code; return its process. `said`: the files of its standard output and error."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
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
