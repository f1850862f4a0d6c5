"""Parts of items that are neither too many nor too large."""

from __future__ import annotations

import random

import pytest

from gkd_core.data.division import divide


@pytest.mark.parametrize(
    ("sizes", "count", "limit", "parts"),
    [
        ([], 2, 9.0, []),
        ([1, 1, 1], 2, 9.0, [(0, 2), (2, 3)]),
        ([4, 4, 1, 4], 9, 8.0, [(0, 2), (2, 4)]),
        ([9, 9, 1], 9, 8.0, [(0, 1), (1, 2), (2, 3)]),
        ([0, 0, 0], 9, 0.0, [(0, 3)]),
    ],
)
def test_parts_are_those_worked_out_by_hand(sizes, count, limit, parts):
    assert divide(sizes, count, limit) == [range(*part) for part in parts]


def test_every_item_is_in_one_part_and_none_could_take_the_next():
    draw = random.Random(1)
    for _ in range(200):
        sizes = [draw.randrange(10) for _ in range(draw.randrange(30))]
        count, limit = draw.randrange(1, 6), draw.randrange(15)
        parts = divide(sizes, count, limit)
        assert [place for part in parts for place in part] == list(range(len(sizes)))
        for part in parts:
            own = [sizes[place] for place in part]
            assert len(own) == 1 or (len(own) <= count and sum(own) <= limit)
            if part.stop < len(sizes):
                assert len(own) == count or sum(own) + sizes[part.stop] > limit
