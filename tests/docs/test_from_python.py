"""The script that distils from Python runs as it is shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests import forked

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "from-python" / "distill.py"


@pytest.mark.exhaustive
def test_the_script_prints_how_the_student_compares(world, tmp_path):
    code = SCRIPT.read_text()
    cache = str(tmp_path / "cache")
    done = forked.run(code, world / "teacher", world / "train.jsonl", cwd=tmp_path, GKD_CACHE=cache)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\nstudent, pkd\+soft +0\.\d{4} ", done.stdout)
    assert (tmp_path / "my-student" / "model.safetensors").exists()
    assert (tmp_path / "runs" / "from-python" / "report.html").exists()
