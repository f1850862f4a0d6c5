"""Rows whose prompts leave no room for what models write are left out and counted."""

from __future__ import annotations

import numpy as np
import pytest

from gkd_core.data import some_rows
from gkd_core.data.encode import TEXTS, Encoded
from gkd_core.data.writing_room import rows_with_room

PROMPTS, LENGTHS = [2, 5, 3, 6, 1], [4, 8, 8, 6, 2]


def _encoded(truncated=0):
    """Rows of which each token is its place, with 8 tokens at most."""
    places = [np.arange(length) for length in LENGTHS]
    learned = [own >= prompt for own, prompt in zip(places, PROMPTS, strict=True)]
    return Encoded(
        ids=np.concatenate(places).astype(np.int32),
        type_ids=None,
        offsets=np.cumsum([0, *LENGTHS]),
        labels=None,
        num_truncated=truncated,
        learned=np.concatenate(learned),
        sources=np.array([0, 1, 0, 1, 0]),
        extra={TEXTS: np.array([10, 11, 13, 14, 15])},
    )


@pytest.mark.parametrize("chunk", [1000, 2])
def test_rows_with_room_stay_as_they_are(monkeypatch, chunk):
    monkeypatch.setattr(some_rows, "CHUNK", chunk)
    found = rows_with_room(_encoded(), 3)
    assert found.prompts.tolist() == [2, 3, 1]
    assert [found.ids[found.part(row)].tolist() for row in range(3)] == [
        [0, 1, 2, 3],
        [*range(8)],
        [0, 1],
    ]
    assert found.extra[TEXTS].tolist() == [10, 13, 15]
    assert found.sources.tolist() == [0, 0, 0]
    assert found.num_long_prompts == 2


def test_what_is_cut_is_counted_among_the_rows_that_stay():
    assert rows_with_room(_encoded(truncated=2), 3).num_truncated == 1
    assert rows_with_room(_encoded(truncated=1), 3).num_truncated == 0
    assert rows_with_room(_encoded(), 3).num_truncated == 0


def test_rows_that_all_have_room_are_the_same_object():
    encoded = _encoded()
    assert rows_with_room(encoded, 6) is encoded
