"""A teacher with another tokenizer, shared by ranks that see different rows."""

from __future__ import annotations

import pytest


@pytest.fixture
def cases(tongues):
    """Runs in which a RoBERTa learns from a BERT: the predictions, and of texts with masks."""

    def _cases(*settings):
        return [
            (
                kind,
                str(tongues / f"{head}bert"),
                [
                    f"student.model={tongues / f'{head}roberta'}",
                    "task.max_length=64",
                    *own,
                    *settings,
                ],
            )
            for kind, head, own in (
                ("classification", "", ["method=pkd+kd"]),
                ("masked-lm", "masked-", ["method=rail-kd", "task.kind=masked-lm"]),
            )
        ]

    return _cases


@pytest.mark.parametrize(
    "settings",
    [
        ["teacher.tensor=2"],
        pytest.param(["teacher.placement=zero3"], marks=pytest.mark.exhaustive),
    ],
)
def test_shared_teacher_teaches_the_same(still, on_ranks, runs, cases, tmp_path, settings):
    runs.train_all(still, tmp_path / "alone", cases())
    on_ranks(2, runs.train_all, still, tmp_path / "ranks", cases(*settings))
    for name, *_ in cases():
        runs.assert_equal(tmp_path / "ranks" / name, tmp_path / "alone" / name)
