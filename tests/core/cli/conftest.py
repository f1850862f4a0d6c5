"""How a command answers to what is wrong."""

import shutil
import signal
from contextlib import contextmanager

import pytest

from gkd_core.runs.run import Run

LONGEST = 2048
SECONDS = 10


@pytest.fixture
def refuse(invoke, world, tmp_path, monkeypatch):
    """Return what is wrong with the answer to a command; None if it is refused as it should be."""

    def execute(run):
        raise AssertionError("the run begins")

    monkeypatch.setattr(Run, "execute", execute)
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))

    def _refuse(*arguments):
        try:
            with _in_time():
                done = invoke(*arguments)
        except BaseException as error:
            return f"{type(error).__name__}: {error}"[:300]
        finally:
            written = [path for path in tmp_path.iterdir() if path.name != "cache"]
            for path in written:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        wrong = {
            f"status {done.code}": done.code != 2,
            f"{len(done.err)} bytes": len(done.err.encode()) > LONGEST,
            "a traceback": "Traceback" in done.err,
            "control characters": any(not c.isprintable() and c != "\n" for c in done.err),
            "no error": "Error: " not in done.err,
            f"written: {[path.name for path in written]}": written,
        }
        found = [name for name, is_so in wrong.items() if is_so]
        return f"{', '.join(found)}: {done.err[-300:]}" if found else None

    return _refuse


@contextmanager
def _in_time():
    def late(*_):
        raise TimeoutError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
