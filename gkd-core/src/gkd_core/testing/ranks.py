"""`on_ranks`: a function called on several processes that communicate over gloo."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import queue
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from io import BytesIO
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")

PATIENCE = 200
"""Seconds that the ranks may take; they wait for each other for half this time."""

PRELOADED = "gkd_core.testing.preloaded"
"""The module that the server of processes imports once for all of them."""


def on_ranks(ranks: int, function: Callable[..., Value], *arguments: Any) -> list[Value]:
    """Call a function on every rank of a new process group, and return the results by rank.

    The ranks are processes on this machine and communicate over gloo. What goes in and out is
    pickled. The function, and classes among the arguments, stand at the top of a module; it may be
    a test file.

    Args:
        ranks: Number of processes.
        function: The function.
        *arguments: Its arguments, the same on every rank.

    Raises:
        RuntimeError: A rank died, or took too long. What the function raises on a rank is raised
            here, with the rank's traceback as a note.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    call = _Call.pack(function, arguments)
    with tempfile.TemporaryDirectory(prefix="gkd-ranks-") as folder:
        return _collect(context, ranks, call, Path(folder) / "store")


@dataclass(frozen=True)
class _Call:
    """A function and its arguments, pickled.

    Attributes:
        content: The pickled pair.
        files: The files of the modules that it needs: pytest imports test files by their path.
        environment: Environment variables; those of the server of processes may be older.
    """

    content: bytes
    files: Mapping[str, str]
    environment: Mapping[str, str]

    @classmethod
    def pack(cls, function: Callable[..., Any], arguments: tuple[Any, ...]) -> _Call:
        """Pickle a call."""
        buffer = BytesIO()
        pickler = _Pickler(buffer)
        pickler.dump((function, arguments))
        return cls(buffer.getvalue(), pickler.files, dict(os.environ))

    def run(self) -> Any:
        """Make the call in this process."""
        for name, file in self.files.items():
            _import(name, file)
        function, arguments = pickle.loads(self.content)
        return function(*arguments)


class _Pickler(pickle.Pickler):
    """Notes the files of the modules whose functions and classes it pickles."""

    def __init__(self, buffer: BytesIO) -> None:
        super().__init__(buffer)
        self.files: dict[str, str] = {}

    def reducer_override(self, value: Any) -> Any:
        """Leave pickling as it is."""
        if isinstance(value, type | FunctionType):
            file = getattr(sys.modules.get(value.__module__), "__file__", None)
            if file is not None:
                self.files[value.__module__] = file
        return NotImplemented


def _import(name: str, file: str) -> None:
    """Import a module by its name or, where that is impossible, from its file."""
    if name in sys.modules:
        return
    try:
        import_module(name)
    except ImportError:
        spec = spec_from_file_location(name, file)
        assert spec is not None, "a Python file"
        assert spec.loader is not None, "a Python file"
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


@dataclass(frozen=True)
class _Outcome:
    """The result of a call on a rank.

    Attributes:
        rank: The rank.
        content: What was returned or raised, pickled.
        trace: The traceback if it was raised, or None.
    """

    rank: int
    content: bytes
    trace: str | None = None


def _collect(context: ForkServerContext, ranks: int, call: _Call, store: Path) -> list[Any]:
    """Start the processes, and return their results by rank."""
    outcomes: Queue[_Outcome] = context.Queue()
    workers = [
        context.Process(target=_work, args=(rank, ranks, call, str(store), outcomes), daemon=True)
        for rank in range(ranks)
    ]
    for worker in workers:
        worker.start()
    try:
        found = {outcome.rank: outcome for outcome in (_next(outcomes, workers) for _ in workers)}
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    return [pickle.loads(found[rank].content) for rank in range(ranks)]


def _next(outcomes: Queue[_Outcome], workers: Sequence[BaseProcess]) -> _Outcome:
    """Return the next outcome; raise what it raised.

    Raises:
        RuntimeError: A process died without an outcome, or there is none for too long.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        dead = [worker.exitcode for worker in workers if worker.exitcode]
        try:
            outcome = outcomes.get(timeout=1)
        except queue.Empty:
            if dead:
                raise RuntimeError(f"a rank died with exit status {dead[0]}") from None
            continue
        if outcome.trace is None:
            return outcome
        error: BaseException = pickle.loads(outcome.content)
        error.add_note(f"on rank {outcome.rank}:\n{outcome.trace}")
        raise error
    raise RuntimeError(f"the ranks did not finish within {PATIENCE} s")


def _work(rank: int, ranks: int, call: _Call, store: str, outcomes: Queue[_Outcome]) -> None:
    """Make the call on a rank, in a process of its own."""
    gc.freeze()  # DeepSpeed collects garbage, and need not look at all that is imported.
    try:
        _join(rank, ranks, call.environment, store)
        content = pickle.dumps(call.run())
        dist.barrier()
        dist.destroy_process_group()
        outcomes.put(_Outcome(rank, content))
    except BaseException as error:
        trace = traceback.format_exc()
        outcomes.put(_Outcome(rank, _pickled(error), trace))


def _join(rank: int, ranks: int, environment: Mapping[str, str], store: str) -> None:
    """Take this process's place in the process group."""
    os.environ.update(environment)
    os.environ["LOCAL_RANK"] = str(rank)
    if sys.platform == "linux":  # the name of the machine need not lead to an address
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=PATIENCE // 2),
    )


def _pickled(error: BaseException) -> bytes:
    """Pickle an exception, or what it says if that is impossible."""
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return content
