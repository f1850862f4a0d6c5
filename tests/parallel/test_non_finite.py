"""A step that is not finite ends every layout alike, and is saved by all ranks."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from gkd_core.plugins import registry
from gkd_core.runs.replay import replay

LAYOUTS = {
    "data": [],
    "tensor": ["parallel.tensor=2"],
    "ZeRO 2": ["parallel.zero=2", "training.precision=fp16"],
    "ZeRO 3": ["parallel.zero=3"],
}
EXACT = ("data", "ZeRO 2", "ZeRO 3")
"""Layouts in which each process computes what one process would compute for its rows."""
PLACE = "bert.encoder.layer.2.output.dense"


@pytest.fixture(scope="session")
def overflowing(still):
    """A teacher with finite weights whose third block computes what no float can hold."""
    model = AutoModelForSequenceClassification.from_pretrained(still / "teacher")
    with torch.no_grad():
        model.get_submodule(PLACE).weight.fill_(1e38)
    folder = still / "overflowing"
    model.save_pretrained(folder)
    for file in (still / "teacher").glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.exhaustive
def test_every_layout_names_the_teacher_and_saves_the_step(
    still, overflowing, on_ranks, runs, tmp_path
):
    given = ["method=pkd+soft", f"student.model={still / 'teacher'}"]
    cases = [(name, str(overflowing), given + extra) for name, extra in LAYOUTS.items()]
    errors = on_ranks(2, runs.fail_all, still, tmp_path, cases)
    for name, error in errors[0].items():
        assert "loss of stage 'distil' at step 1 of 8 is not finite: total = nan" in error, name
        assert f"in the teacher 'teacher', the output of {PLACE} is the first" in error.lower(), (
            name
        )
        for rank in (0, 1) if name != "tensor" else (0,):
            done = replay(tmp_path / name, registry(), rank)
            assert len(done.saved.batches[0]) == (16 if name == "tensor" else 8)
            assert done.found.place == PLACE
            assert done.differences == [] or name not in EXACT, (name, rank, done.differences)
