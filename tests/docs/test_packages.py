"""The example packages without a page of their own: their own tests pass."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests import forked

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PACKAGES = {"combiner-confidence": 1, "rollouts-sampling": 3, "rollouts-vllm": 7, "task-copa": 6}
"""The packages, with the number of their tests."""


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name",
    PACKAGES,
)
def test_its_own_tests_pass(install, name):
    site = install(f"gkd-{name}", name.partition("-")[2])
    code = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    shutil.copytree(EXAMPLES / f"gkd-{name}" / "tests", site / "tests")
    done = forked.run(code, "-p", "no:cacheprovider", "-q", "tests", cwd=site, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stdout
    assert f"{PACKAGES[name]} passed" in done.stdout
