import json
from pathlib import Path

import pytest
from gkd_task_copa import COPA

from gkd_core.api import ConfigError, DataError, TaskConfig
from gkd_core.testing import check_task

KIND = "multiple-choice"


def _write(folder: Path, name: str, words: list[str]) -> None:
    rows = [
        {
            "premise": f"the film was {word}",
            "choice1": f"it is {word}",
            "choice2": "it is nothing of the kind",
            "question": ("cause", "effect")[number % 2],
            "label": 0,
        }
        for number, word in enumerate(words)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like SuperGLUE's of COPA."""
    _write(tmp_path, "train", ["good", "bad", "sad"])
    _write(tmp_path, "val", ["happy", "dull"])
    return tmp_path


def _task(folder: Path, kind: str | None = None) -> COPA:
    return COPA(TaskConfig(name="copa", train=str(folder), kind=kind))


def test_it_keeps_the_contract_on_two_processes(folder: Path) -> None:
    check_task(COPA, settings={"train": str(folder)}, kind=KIND, ranks=2)


def test_the_premise_is_read_with_the_question(folder: Path) -> None:
    data = _task(folder).load(KIND, 0)
    assert data.train.text == [
        "the film was good What was the cause?",
        "the film was bad What happened as a result?",
        "the film was sad What was the cause?",
    ]
    assert data.train.pair is not None
    assert data.train.pair[0] == ["it is good", "it is nothing of the kind"]
    assert data.train.labels == [0, 0, 0]
    assert data.validation is not None
    assert len(data.validation) == 2


def test_another_kind_and_a_missing_folder_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="'copa' has choices"):
        _task(folder, "regression").check()
    with pytest.raises(DataError, match=r"elsewhere.* does not exist; set task"):
        _task(folder / "elsewhere").check()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"premise": "it was bad"}', "val.jsonl:1: not a row of COPA .'question'"),
        ("bad", "val.jsonl:1: not a row of COPA"),
        (
            '{"premise": "a", "choice1": "b", "choice2": "c", "question": "cause", "label": 2}',
            "val.jsonl:1: the label is 2",
        ),
    ],
)
def test_a_bad_row_is_named(folder: Path, line: str, message: str) -> None:
    (folder / "val.jsonl").write_text(f"{line}\n")
    with pytest.raises(DataError, match=message):
        _task(folder).load(KIND, 0)
