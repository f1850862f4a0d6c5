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


def test_two_ranks_that_share_the_models_train_as_one_process(pebbles, on_ranks, runs, tmp_path):
    how = runs.Plugin, runs.train_all
    train_all(*how, pebbles, tmp_path / "alone", CASES)
    divided = [(name, model, [*own, "parallel.tensor=2"]) for name, model, own in CASES]
    on_ranks(2, train_all, *how, pebbles, tmp_path / "shared", divided)
    for name, *_ in CASES:
        runs.assert_equal(tmp_path / "shared" / name, tmp_path / "alone" / name)
    student = tmp_path / "alone" / "narrow" / "student"
    config = json.loads((student / "config.json").read_text())
    assert (config["model_type"], config["width"], config["depth"]) == ("pebble", 16, 2)
    assert load_file(student / "model.safetensors")["pebble.words.weight"].shape[1] == 16
