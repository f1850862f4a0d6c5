"""The example of an optimizer: its own tests, run beside gkd's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "gkd-optimizer-adamw-8bit"


@pytest.mark.exhaustive
def test_its_own_tests_pass():
    path = os.pathsep.join([str(EXAMPLE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs", "tests"],
        capture_output=True,
        text=True,
        check=False,
        cwd=EXAMPLE,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout or "5 passed" in done.stdout
    assert "5 passed" in done.stdout or "bitsandbytes is not installed" in done.stdout
