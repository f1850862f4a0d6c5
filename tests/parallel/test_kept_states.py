"""Tensors of a teacher that are kept are the same on several ranks as in one process."""

from __future__ import annotations

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    "layouts",
    [
        pytest.param(["parallel.zero=2"], id="zero 2"),
        pytest.param(["parallel.zero=0", "parallel.zero=3"], marks=pytest.mark.exhaustive),
    ],
)
def test_layouts_train_as_one_process_does(still, on_ranks, runs, tmp_path, monkeypatch, layouts):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    cases = [
        ("disk", "teacher", ["method=pkd+soft", "teacher.keep=disk"]),
        ("memory", "teacher", ["method=distilbert+hard", "teacher.keep=memory"]),
    ]
    runs.assert_layouts_equal(still, tmp_path, cases, layouts, on_ranks)
