"""Arrays that are taken part by part, also where the disk takes a part of one."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from gkd_core.data import array_spool
from gkd_core.data.array_spool import ArraySpool


@pytest.mark.parametrize("full", [(), (0,), (2,), (1, 2), range(3, 8), range(8)])
def test_a_disk_that_was_full_for_a_moment_loses_and_shifts_nothing(tmp_path, monkeypatch, full):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path))
    monkeypatch.setattr(array_spool, "IN_MEMORY", 100)
    monkeypatch.setattr(array_spool, "warn_unwritable", lambda error: None)
    stock, writes = array_spool.write_whole, iter(range(99))

    def write(file, content):
        if next(writes) in full:
            file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        stock(file, content)

    monkeypatch.setattr(array_spool, "write_whole", write)
    parts = [np.arange(40 * number, 40 * (number + 1)).reshape(20, 2) for number in range(8)]
    spool = ArraySpool(np.int64)
    for part in parts:
        spool.add(part)
    assert spool.array().tolist() == np.concatenate(parts).tolist()
