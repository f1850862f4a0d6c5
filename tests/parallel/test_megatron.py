"""Only several processes need megatron-core and DeepSpeed, and say so in plain words."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code):
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.exhaustive
def test_a_run_in_one_process_imports_neither_and_the_import_is_quiet():
    code = """
import sys
import gkd_core.cli.run, gkd_core.runs.run, gkd_core.distributed.groups, gkd_core.distributed.layout
import gkd_core.testing
print([name for name in ("megatron", "deepspeed") if name in sys.modules])
import gkd_core.distributed.megatron
"""
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_without_megatron_the_extra_is_named():
    code = """
import sys
from gkd_core.errors import ConfigError
sys.modules["megatron"] = None
try:
    import gkd_core.distributed.megatron
except ConfigError as error:
    print(error)
"""
    done = run(code)
    assert "more than one process needs megatron-core" in done.stdout, done.stderr
    assert "pip install 'gkd-core[parallel]'" in done.stdout
