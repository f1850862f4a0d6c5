from __future__ import annotations

import json
from hashlib import sha256

import numpy as np

from gkd_core.contract.task import Split
from gkd_core.data.assemble import hash_rows

COUNT = 2345
"""More rows than are hashed at once."""


def text(number):
    return f'röw {number} \U0001f600 \ud800 "quoted" \\ \n'


def test_the_hash_is_that_of_each_value_in_json():
    labels = [[number, True, 1.0, None, "b"][number % 5] for number in range(COUNT)]
    texts = [*map(text, range(COUNT - 1)), ["two", "words"]]
    split = Split(texts, labels=labels, group=[str(number // 2) for number in range(COUNT)])
    expected = json.dumps(["some", ["no", "yes"]]) + json.dumps(["train", COUNT])
    expected += "".join(json.dumps(value) + "\n" for value in [*texts, *labels])
    expected += json.dumps(["group", split.group])
    found = hash_rows("some", ["no", "yes"], {"train": split})
    assert found == sha256(expected.encode()).hexdigest()


def test_numbers_count_the_same_in_every_type():
    texts = list(map(text, range(COUNT)))
    hashes = {
        hash_rows("some", (), {"train": Split(texts, labels=labels)})
        for labels in (
            list(range(COUNT)),
            list(np.arange(COUNT)),
            [*range(COUNT - 1), np.int64(COUNT - 1)],
        )
    }
    assert len(hashes) == 1
