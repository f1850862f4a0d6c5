"""Test rows that are training rows, too: what a model makes of them says little of others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from gkd_core.strict_json import json_text

if TYPE_CHECKING:
    from gkd_core.contract.task import Split

MOST = 100_000
"""Training rows that are looked at, so that a run with millions begins as soon."""


def repeated_rows(train: Split, test: Split) -> str | None:
    """Return a sentence on the test rows that are training rows too; None if there are none.

    Args:
        train: The training rows.
        test: The test rows.
    """
    wanted = set(_rows(test))
    found = {row for row in islice(_rows(train), MOST) if row in wanted}
    number = sum(row in found for row in _rows(test))
    if not number:
        return None
    return (
        f"warning: {number:,} of {len(test):,} test rows are training rows, too: their metrics "
        "tell what was learned by heart. Remove them from one of both"
    )


def _rows(split: Split) -> Iterator[str]:
    """Yield what a model reads of each row, and is to write."""
    columns: list[Any] = [c for c in (split.text, split.pair, split.target) if c is not None]
    return (json_text(row) for row in zip(*columns, strict=True))
