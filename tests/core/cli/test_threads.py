"""Threads that wait for each other give up their core, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gkd_core.cli.threads import share_cores


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"GOMP_SPINCOUNT": "10000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_what_the_user_says_holds(given, found):
    share_cores(given)
    assert given == found


SHOW = """
import os, sys
from gkd_core.cli import main
try:
    main(["--version"])
except SystemExit:
    print(os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules)
"""


def test_command_line_says_so_before_torch_is_there():
    own = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", SHOW], env=own, capture_output=True, text=True)
    assert done.stdout.split()[-2:] == ["10000", "False"], done.stderr
