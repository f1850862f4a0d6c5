"""Test rows that are training rows are counted."""

from __future__ import annotations

from gkd_core.contract.task import Split
from gkd_core.data import repeated_rows as module
from gkd_core.data.repeated_rows import repeated_rows


def test_rows_that_are_in_both_are_counted():
    train = Split(["a", "b", "c"], labels=[0, 1, 0])
    assert repeated_rows(train, Split(["d"])) is None
    assert "2 of 3 test rows are training rows" in repeated_rows(train, Split(["b", "d", "b"]))


def test_all_that_is_read_of_a_row_counts():
    train = Split(["a", "b"], pair=["x", "y"])
    assert repeated_rows(train, Split(["a", "b"], pair=["y", "x"])) is None
    assert "1 of 1" in repeated_rows(train, Split(["b"], pair=["y"]))
    train = Split([[{"role": "user", "content": "a"}]], target=["x"], chat=True)
    assert repeated_rows(train, Split(train.text, target=["y"], chat=True)) is None
    assert repeated_rows(train, train)


def test_only_the_first_of_many_training_rows_are_looked_at(monkeypatch):
    monkeypatch.setattr(module, "MOST", 2)
    train = Split(["a", "b", "c"])
    assert repeated_rows(train, Split(["c"])) is None
    assert repeated_rows(train, Split(["b"]))
