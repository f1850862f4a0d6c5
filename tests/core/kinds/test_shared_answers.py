"""What a teacher answers about test rows is computed once for all runs that share it."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from tests.grids import first_of

from gkd_core.teachers import kept

KINDS = ("token-classification", "multi-label", "multiple-choice", "span-extraction")


@pytest.fixture
def queried(monkeypatch):
    """The number of batches of more than one row that teachers answered."""
    stock, seen = kept._answer, []

    def answer(teacher, student, captures, batch, device):
        seen.append(len(batch.rows))
        return stock(teacher, student, captures, batch, device)

    monkeypatch.setattr(kept, "_answer", answer)
    return lambda: sum(rows > 1 for rows in seen)


@pytest.fixture
def compared(task, invoke, tmp_path, monkeypatch):
    """Return the metrics and answers of the teacher of a run: `compared(kind, keep, name)`."""
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))

    def run(kind, name, *flags):
        folder, output = task(kind), tmp_path / name
        settings = [
            f"task.validation={folder / 'validation.jsonl'}",
            f"task.test={folder / 'test.jsonl'}",
            "task.max_length=32",
            "training.steps=1",
            "output.tensorboard=false",
        ]
        pairs = [part for setting in settings for part in ("--set", setting)]
        rows = ["--data", folder / "train.jsonl", "--output", output]
        done = invoke("run", "--method", "hard", "--no-baseline", *rows, *pairs, *flags)
        assert done.code == 0, done.err
        return output

    def _compared(kind, keep, name):
        trained = tmp_path / "trained"
        if not trained.exists():
            run(kind, "trained", "--student", task(kind) / "untrained")
        teacher = ["--teacher", trained / "student", "--set", f"teacher.keep={keep}"]
        output = run(kind, name, *teacher, "--student-layers", 1)
        first, *_ = json.loads((output / "results.json").read_text())["rows"]
        return first["metrics"], pq.read_table(next((output / "predictions").glob("*teacher*")))

    return _compared


@pytest.mark.parametrize("kind", first_of(KINDS))
def test_runs_that_share_a_teacher_ask_it_once_and_find_the_same(kind, compared, queried):
    alone = compared(kind, "none", "alone")
    assert queried() == 0
    first = compared(kind, "share", "first")
    count = queried()
    assert count > 0
    second = compared(kind, "share", "second")
    assert queried() == count
    assert first == second == alone
