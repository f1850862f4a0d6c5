"""What ranks tell each other arrives as it was, and no pickle is among it."""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.distributed import distributed_c10d

from gkd_core.distributed.data_parallel import collect
from gkd_core.distributed.packing import LENGTH, pack, unpack
from gkd_core.distributed.ranks import rank, tell


@dataclass(frozen=True)
class Told:
    tensor: torch.Tensor
    inner: dict
    derived: int = field(default=0, init=False)


class Pair(NamedTuple):
    first: object
    second: object


PLAIN = [
    None,
    [True, 1, 0.1, float("inf"), "é\ud800", [], ()],
    {1: "one", None: {"path": Path("a/b")}, (1, 2): ("x", ["y"])},
    Pair(Path("c"), Pair(1, None)),
    2**80,
]


@pytest.mark.parametrize("value", PLAIN, ids=str)
def test_value_is_as_it_was(value):
    found = unpack(pack(value))
    assert found == value
    assert repr(found) == repr(value)


def test_tensors_are_as_they_were():
    whole = torch.arange(6.0).reshape(2, 3)
    views = {"row": whole[1], "turned": whole.T, "marks": whole > 2, "half": whole.half()}
    found = unpack(pack(Told(torch.tensor(3), {**views, "array": np.ones((2, 0), "i8")})))
    assert type(found) is Told
    assert torch.equal(found.tensor, torch.tensor(3))
    for name, tensor in views.items():
        assert found.inner[name].dtype == tensor.dtype
        assert torch.equal(found.inner[name], tensor), name
    assert (found.inner["array"].shape, found.inner["array"].dtype) == ((2, 0), np.dtype("i8"))
    assert unpack(pack(np.float64(0.1))) == 0.1


def test_what_cannot_be_sent_is_named():
    @dataclass
    class Local:
        value: int

    with pytest.raises(TypeError, match="Local is no dataclass or named tuple that this"):
        pack(Local(1))
    with pytest.raises(TypeError, match="type set cannot be sent to other ranks"):
        pack([{1}])


@pytest.mark.parametrize("name", [("os", "system"), ("os", "stat_result"), ("no.such", "Thing")])
def test_nothing_but_records_is_made(name):
    head = b'{"record": ["%s", "%s", {}]}' % tuple(part.encode() for part in name)
    content = len(head).to_bytes(LENGTH, "big") + head + pack(None)[LENGTH + len(b"null") :]
    with pytest.raises(TypeError, match="is no dataclass or named tuple that this rank knows"):
        unpack(content)


def _exchange():
    own = {"rank": rank(), "text": "x" * rank()}
    return tell(own), collect([own] * (2 - rank()))


def test_ranks_hear_the_first_and_each_other(on_ranks):
    told = [{"rank": number, "text": "x" * number} for number in range(2)]
    assert on_ranks(2, _exchange) == [(told[0], [told[0], told[1], told[0]])] * 2


def _train_without_pickles(train, *arguments):
    def refused(*_):
        raise AssertionError("a pickle travels between ranks")

    with pytest.MonkeyPatch.context() as patch:
        for place, name in (
            (pickle, "loads"),
            (pickle, "Unpickler"),
            (distributed_c10d, "_unpickler"),
            (distributed_c10d, "_pickler"),
        ):
            assert hasattr(place, name)
            patch.setattr(place, name, refused)
        train(*arguments)


def test_run_of_two_ranks_sends_no_pickle(world, on_ranks, runs, tmp_path):
    settings = ["method=soft", "training.checkpoint_every=3", "teacher.keep=memory"]
    case = (world, tmp_path / "run", "teacher", settings)
    on_ranks(2, _train_without_pickles, runs.train, *case)
    assert (tmp_path / "run/stages/distil/done.json").exists()
