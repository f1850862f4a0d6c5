"""Run a server on the loopback interface while a test asks it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager

PATIENCE = 1800
"""Seconds until it must be installed and serve."""


def free_port():
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(command, port, folder, **environment):
    """Run a server in a folder until the context ends; yields its address once it answers."""
    log = folder / "vllm.log"
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"NO_PROXY": "127.0.0.1"}
    with log.open("w") as file:
        server = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=own | environment,
            cwd=folder,
            start_new_session=True,
        )
    try:
        _wait(f"http://127.0.0.1:{port}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _wait(url, server, log):
    """Wait until a server answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(PATIENCE):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with opener.open(f"{url}/v1/models", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])
