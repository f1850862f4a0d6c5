"""Tensors in the state of a method: what is JSON stays JSON, tensors come back as they were."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from gkd_core.errors import PluginError
from gkd_core.training.method_state import TENSOR, put_tensors, take_tensors


def again(state, path):
    """The state as a checkpoint gives it back."""
    tensors = {}
    text = json.dumps(take_tensors(state, tensors), allow_nan=False)
    save_file(tensors, path)
    return put_tensors(json.loads(text), load_file(path))


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_nested_tensors_of_any_type_come_back_bit_equal(tmp_path):
    whole = torch.randn(5, 3)
    state = {
        "one": [{"queue": whole, "first": whole[:2], "turned": whole.T, "same": whole}],
        "two": [{"types": [whole.to(t) for t in (torch.bfloat16, torch.float64, torch.int64)]}],
        "values": [{"number": 0.1, "text": "[1]", "nothing": None, "yes": True, "empty": {}}],
        "scalar": torch.tensor(3),
        "none": torch.zeros(0, 4),
        "grows": torch.nn.Parameter(whole[0]),
    }
    found = again(state, tmp_path / "methods.safetensors")
    assert same(found, state)
    assert not found["grows"].requires_grad


def test_a_tensor_is_taken_as_it_is_now():
    queue, tensors = torch.zeros(3), {}
    kept = take_tensors({"queue": queue}, tensors)
    queue += 1
    assert put_tensors(kept, tensors)["queue"].tolist() == [0, 0, 0]


def test_state_without_tensors_is_as_it_was_in_earlier_versions():
    state, tensors = {"sid": [{"newest": 2, "measured": [1, 0.5, 3.0]}]}, {}
    assert take_tensors(state, tensors) == state == put_tensors(state, {})
    assert not tensors


def test_numbers_that_json_cannot_hold_come_back(tmp_path):
    state = {"best": [math.inf, -math.inf, 0.5], "last": {"loss": math.nan}, "t": torch.ones(1)}
    found = again(state, tmp_path / "methods.safetensors")
    assert found["best"] == state["best"]
    assert math.isnan(found["last"]["loss"])


def test_the_reserved_key_is_refused():
    with pytest.raises(PluginError, match=r"reserved key 'tensor of a gkd method' \(methods.a.0\)"):
        take_tensors({"a": [{TENSOR: "b"}]}, {})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [{3: 1.0}]}, r"key 3 \(methods.a.0\), which would be read again as '3'"),
        ({"a": {"seen": {1, 2}}}, r"has a set \(methods.a.seen\)"),
        ({"a": [torch.nn.Linear(1, 1)]}, r"has a Linear \(methods.a.0\)"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_refused(state, message):
    with pytest.raises(PluginError, match=message):
        take_tensors(state, {})
