"""What the report says that a stage has cost."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gkd_core.analysis import cost, report
from gkd_core.runs.result import StageResult

STUDENT, TEACHER = 1e9, 4e9
"""Operations for one row."""


@pytest.fixture
def cost_of(prepare_run):
    """What a run of 12 steps, two epochs of 96 rows, with a setting cost in 10 seconds."""

    def _cost_of(*settings, kept=()):
        run = prepare_run("method=soft", "training.epochs=2", *settings)
        run.results["distil"] = StageResult("distil", "", 12, "accuracy", 1, 12, 10.0, kept=kept)
        rows = [
            SimpleNamespace(name=name, flops=flops, tokens=7.0)
            for name, flops in (("teacher", TEACHER), ("student", STUDENT))
        ]
        (found,) = cost.stage_costs(run, SimpleNamespace(rows=rows))
        return found

    return _cost_of


@pytest.mark.parametrize(("kept", "read"), [((), 192), (("teacher",), 96)])
def test_a_teacher_costs_what_it_was_asked(cost_of, kept, read):
    found = cost_of(kept=kept)
    assert (found.rows, found.tokens) == (192, 7 * 192)
    assert found.student == 3 * STUDENT * 192
    assert found.teachers == TEACHER * read
    assert found.peak_share is None, "the peak of this processor is not known"


def test_a_teacher_that_no_method_reads_costs_nothing(cost_of):
    assert cost_of("method=hard").teachers == 0


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA H200", "fp32", 67e12),
        ("NVIDIA A100-SXM4-80GB", "fp16", 312e12),
        ("another", "bf16", None),
    ],
)
def test_share_of_the_peak_is_that_of_student_and_teacher(
    cost_of, monkeypatch, device, precision, peak
):
    monkeypatch.setattr(cost, "_device", lambda spec: device)
    share = cost_of(f"training.precision={precision}").peak_share
    work = (3 * STUDENT + TEACHER) * 192 / 10
    assert share == (None if peak is None else pytest.approx(work / peak))


def test_a_stage_that_makes_a_teacher_costs_what_the_teacher_was_counted_to():
    rows = {"helper": SimpleNamespace(flops=TEACHER), "teacher": SimpleNamespace(flops=5e9)}
    student = SimpleNamespace(flops=STUDENT)
    teachers = [
        SimpleNamespace(called="helper", store=None),
        SimpleNamespace(called="teacher", store="entry"),
    ]
    run = SimpleNamespace(last=SimpleNamespace(student="small"), teachers=teachers)
    for name, store, shape, expected in [
        ("distil", None, "small", student),
        ("helper", None, "middle", rows["helper"]),
        ("teacher-1", "entry", "large", rows["teacher"]),
        ("other", None, "large", None),
    ]:
        spec = SimpleNamespace(name=name, store=store, student=shape)
        assert cost._compared_like(spec, run, student, rows) is expected


def test_missing_numbers_are_explained():
    known = cost.StageCost("distil", 1, 1.0, 1.0, 0.0, None)
    unknown = cost.StageCost("first", 1, None, None, None, None)
    assert report._unknown([known]) == ""
    said = report._unknown([unknown, known])
    assert said == "-: no model like that of first was counted on test rows."
