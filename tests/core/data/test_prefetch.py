"""Batches made ahead equal those made one at a time."""

import threading
import time

import pytest
import torch

from gkd_core.data.prefetch import ahead
from gkd_core.training import loop


def alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_items_and_their_order_stay(count):
    assert list(ahead(range(count))) == list(range(count))
    assert not alive()


def test_next_items_are_made_before_they_are_asked_for():
    made = []
    items = ahead((made.append(n), n)[1] for n in range(9))
    assert next(items) == 0
    for _ in range(1000):
        if made == [0, 1, 2]:
            break
        time.sleep(0.01)
    assert made == [0, 1, 2], "two ahead, and no more"
    items.close()
    assert not alive()


def test_error_is_raised_at_its_place():
    def items():
        yield 1
        yield 2
        raise ValueError("no third")

    found = ahead(items())
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ValueError, match="no third"):
        next(found)
    assert not alive()


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "student" / "model.safetensors")


def test_student_is_the_same_bit_for_bit(settings, invoke, tmp_path, monkeypatch):
    assert invoke("run", *settings, "--output", tmp_path / "plain").code == 0
    threads = []
    monkeypatch.setattr(loop, "_prefetches", lambda stage: threads.append(1) or True)
    done = invoke("run", *settings, "--output", tmp_path / "ahead")
    assert done.code == 0, done.err
    assert threads
    assert not alive()
    plain, made = weights(tmp_path / "plain"), weights(tmp_path / "ahead")
    assert all(torch.equal(plain[name], made[name]) for name in plain)
