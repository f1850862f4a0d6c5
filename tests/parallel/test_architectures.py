"""An architecture of a plugin is distilled, pruned and trained on two ranks like any other."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gkd_core.models.architectures import register_architectures
from gkd_core.models.load import load_teacher
from gkd_core.models.slicing.select import Kept, sliced_copy
from gkd_core.plugins import registry

FILE = Path(__file__).parents[1] / "plugins" / "pebble.py"


def _load():
    if "pebble" not in sys.modules:
        spec = importlib.util.spec_from_file_location("pebble", FILE)
        sys.modules["pebble"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["pebble"])
    return sys.modules["pebble"]


def train_all(plugin, train, world, folder, cases):
    """Train several runs with the plugin of the architecture."""
    plugin.gkd_register_sites = staticmethod(_load().gkd_register_sites)
    train(world, folder, cases)


@pytest.fixture(scope="module")
def pebbles(still, tmp_path_factory):
    """The world without dropout, whose teacher is of the plugin's architecture."""
    pebble, folder = _load(), tmp_path_factory.mktemp("pebbles") / "world"
    shutil.copytree(still, folder)
    classes = json.loads((still / "teacher" / "config.json").read_text())
    config = pebble.PebbleConfig(
        vocab_size=classes["vocab_size"],
        positions=32,
        id2label={0: "neg", 1: "pos"},
        label2id={"neg": 0, "pos": 1},
    )
    torch.manual_seed(0)
    pebble.PebbleForSequenceClassification(config).save_pretrained(folder / "teacher")
    return folder


CASES = [
    ("pkd", "teacher", ["method=pkd+soft"]),
    ("minilm", "teacher", ["method=minilm+hard", "student.layers=1"]),
    ("narrow", "teacher", ["method=soft+hard", "student.hidden_size=16", "student.heads=2"]),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "names", [("minilm", "narrow"), pytest.param(("pkd",), marks=pytest.mark.exhaustive)]
)
def test_two_ranks_that_share_the_models_train_as_one_process(
    pebbles, on_ranks, runs, tmp_path, names
):
    how, cases = (runs.Plugin, runs.train_all), [case for case in CASES if case[0] in names]
    train_all(*how, pebbles, tmp_path / "alone", cases)
    divided = [(name, model, [*own, "parallel.tensor=2"]) for name, model, own in cases]
    on_ranks(2, train_all, *how, pebbles, tmp_path / "shared", divided)
    for name in names:
        runs.assert_equal(tmp_path / "shared" / name, tmp_path / "alone" / name)
    if "narrow" in names:
        _assert_is_a_narrow_pebble(tmp_path / "alone" / "narrow" / "student")


def _assert_is_a_narrow_pebble(student):
    config = json.loads((student / "config.json").read_text())
    assert (config["model_type"], config["width"], config["depth"]) == ("pebble", 16, 2)
    assert load_file(student / "model.safetensors")["pebble.words.weight"].shape[1] == 16


def test_a_slice_is_saved_and_loaded_with_widths_of_its_own(pebbles, tmp_path):
    adapters = [_load().PebbleSites]
    register_architectures(adapters, registry().kinds)
    kind = registry().kind("classification")
    whole = load_teacher(str(pebbles / "teacher"), kind, ("neg", "pos"), False, "teacher.model")
    kept = Kept([[0, 3], [1], [2], [0, 1, 2]], [range(48), range(8), range(64), range(1)])
    sliced = sliced_copy(whole, kept)
    sliced.save_pretrained(tmp_path / "sliced")
    name = str(tmp_path / "sliced")
    loaded = load_teacher(name, kind, ("neg", "pos"), False, "teacher.model")
    rows = torch.arange(4, 24).view(2, 10)
    torch.testing.assert_close(loaded(rows).logits, sliced(rows).logits, rtol=0, atol=0)
    assert loaded.base_model.blocks[3].attention.head_count == 3
    assert loaded.base_model.blocks[3].fall.weight.shape == (32, 1)


def test_a_scaled_student_is_a_slice_of_the_most_important_heads(pebbles, runs, tmp_path):
    case = ("run", "teacher", ["method=soft+hard", "student.scale=0.5"])
    train_all(runs.Plugin, runs.train_all, pebbles, tmp_path, [case])
    weights = load_file(tmp_path / "run" / "student" / "model.safetensors")
    halves = {"attention.to_query": 4 * 8, "rise": 64}  # of 8 heads and 128 neurons
    for name, kept in halves.items():
        rows = [len(weights[f"pebble.blocks.{block}.{name}.weight"]) for block in range(2)]
        assert sum(rows) == kept
