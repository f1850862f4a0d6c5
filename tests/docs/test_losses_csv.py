"""The example of a plugin that watches a run and adds a command."""

from __future__ import annotations

import csv

import pytest


@pytest.fixture
def installed(install):
    """A folder with the plugin, as `pip install --target` leaves it."""
    return install("gkd-losses-csv", "losses-csv")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_losses_are_written_and_shown(gkd, settings, installed, tmp_path):
    done = gkd("run", *settings, "--output", "run", PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    with (tmp_path / "run" / "losses-distil.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert set(rows[0]) == {"step", "soft", "hard", "total"}
    shown = gkd("losses", "run", PYTHONPATH=str(installed))
    assert shown.returncode == 0, shown.stderr
    first, last = shown.stdout.splitlines()
    assert first.startswith("distil  step 2  ")
    assert f"total {float(rows[-1]['total']):.4g}" in last
