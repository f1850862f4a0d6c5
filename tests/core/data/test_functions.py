"""The task `functions`: questions about the library's functions, and what their docstrings say."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from gkd_core.config.schema import TaskConfig
from gkd_core.data.functions import HELD_OUT, Functions, collect, split
from gkd_core.errors import ConfigError

SOURCE = '''
def first(one, *, two: int = 2) -> int:
    """Return the first of several things that there are.

    More of it.
    """


class Some:
    async def second(self):
        """Return the second of several things that there are."""

    def short(self):
        """Too short."""

    def silent(self):
        return 1
'''


def test_functions_are_described_by_the_first_paragraph_of_their_docstrings(tmp_path):
    (tmp_path / "things.py").write_text(SOURCE)
    (tmp_path / "wrong.py").write_text("def (")
    found = [(one.signature, one.description, one.file) for one in collect(tmp_path)]
    assert found == [
        (
            "def first(one, *, two: int=2):",
            "Return the first of several things that there are.",
            "things.py",
        ),
        (
            "async def second(self):",
            "Return the second of several things that there are.",
            "things.py",
        ),
    ]


def test_equal_descriptions_are_one_row(tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    (tmp_path / "b.py").write_text(SOURCE)
    assert {one.file for one in collect(tmp_path)} == {"a.py"}


@pytest.mark.slow
def test_functions_of_a_file_are_in_one_split():
    every = split(collect(Path(sysconfig.get_path("stdlib"))))
    files = {name: {one.file for one in part} for name, part in every.items()}
    assert not files["train"] & files["test"]
    assert not files["train"] & files["validation"]
    assert not files["test"] & files["validation"]
    assert {name: len(every[name]) for name in HELD_OUT} == dict(HELD_OUT)
    assert len(every["train"]) > 1000


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train": "rows.jsonl"}, "task.train is 'rows.jsonl', but the task 'functions' has its"),
        ({"kind": "classification"}, "task.kind is 'classification', but the task 'functions'"),
    ],
)
def test_settings_of_other_tasks_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        Functions(TaskConfig(**settings)).check()
