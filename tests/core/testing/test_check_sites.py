"""`check_sites` passes adapters that describe their architecture, and names what is wrong."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from transformers import BertConfig, LlamaConfig

from gkd_core.api import ColumnParallel, Sites
from gkd_core.testing import check_sites

FILE = Path(__file__).parents[2] / "plugins" / "pebble.py"


def _load():
    if "pebble" not in sys.modules:
        spec = importlib.util.spec_from_file_location("pebble", FILE)
        sys.modules["pebble"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["pebble"])
    return sys.modules["pebble"]


pebble = _load()
CONFIG = pebble.PebbleConfig(depth=3)
SHAPE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


class BertSites(Sites):
    """What core finds by itself."""

    families = ("bert",)


class LlamaSites(Sites):
    """What core finds by itself."""

    families = ("llama",)


class Backwards(pebble.PebbleSites):
    """Lists the blocks in the wrong order."""

    def find_blocks(self):
        return list(super().find_blocks())[::-1]


class Unnormed(pebble.PebbleSites):
    """Takes another norm for the final one."""

    def find_final_norm(self):
        return self.blocks[-1].ffn_norm


class Wide(pebble.PebbleSites):
    """Tells another feed-forward width."""

    @classmethod
    def read_info(cls, name, config, labels):
        return replace(super().read_info(name, config, labels), heads=8, head_size=4)


class Swapped(pebble.PebbleSites):
    """Takes a projection of the attention for one of all features."""

    outputs: ClassVar = dict.fromkeys(("to_query", "to_key"), (("heads", "head_size"),))


class Half(pebble.PebbleSites):
    """Divides a layer and not the one after it."""

    tensor_plan: ClassVar = dict(
        pebble.PebbleSites.tensor_plan, **{"blocks.*.ffn_norm": ColumnParallel()}
    )


class Uncounted(pebble.PebbleSites):
    """Does not say that the attention counts its heads."""

    counts = ()


def test_an_architecture_of_a_plugin_passes():
    check_sites(pebble.PebbleSites, CONFIG, ranks=2)


@pytest.mark.parametrize(
    ("sites", "config", "kinds"),
    [
        (BertSites, BertConfig(**SHAPE, intermediate_size=48), ("classification", "masked-lm")),
        (LlamaSites, LlamaConfig(**SHAPE, intermediate_size=48, pad_token_id=0), ("causal-lm",)),
    ],
)
def test_sites_that_core_finds_pass(sites, config, kinds):
    check_sites(sites, config, kinds)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (Backwards, r"the blocks of find_blocks run in the order \[3, 2, 1\]"),
        (Unnormed, r"hidden\[3\]\.normed cannot be captured: .* runs before its last block"),
        (Wide, r"query\[1\] has shape \(3, 4, 7, 8\), but by ModelInfo \(3, 8, 7, 4\)"),
        (Swapped, "in another order|cannot be sliced"),
    ],
)
def test_wrong_sites_are_named(sites, message):
    with pytest.raises(Exception, match=message) as failed:
        check_sites(sites, CONFIG)
    assert type(failed.value).__name__ in ("AssertionError", "MethodError")


@pytest.mark.parametrize("sites", [Uncounted, Half])
def test_a_plan_that_does_not_divide_is_named(sites):
    with pytest.raises(Exception, match=r"shape|cannot be divided|differs"):
        check_sites(sites, CONFIG, ranks=2)
