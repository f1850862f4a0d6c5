"""Tiny random models of the supported families, and batches for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

HEADS = {
    "base": AutoModel,
    "classification": AutoModelForSequenceClassification,
    "masked-lm": AutoModelForMaskedLM,
    "causal-lm": AutoModelForCausalLM,
}
SHAPE = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64}
WINDOW = {"sliding_window": 4}
FAMILIES = {
    "bert": {"intermediate_size": 64},
    "roberta": {"intermediate_size": 64},
    "distilbert": {"hidden_dim": 64},
    "gpt2": {"n_inner": 64},
    "llama": GROUPED,
    "qwen3": GROUPED,
    "glm": GROUPED,
    "glm4": GROUPED,
    "mistral": GROUPED | WINDOW,
    "qwen2": GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    "electra": {"intermediate_size": 64, "embedding_size": 16},
    "modernbert": {"intermediate_size": 64, "local_attention": 4, "global_attn_every_n_layers": 2},
    "mobilebert": {
        "intermediate_size": 24,
        "embedding_size": 16,
        "intra_bottleneck_size": 16,
        "num_feedforward_networks": 2,
    },
    "gpt_neox": {"intermediate_size": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "deberta-v2": {"intermediate_size": 64, "relative_attention": True, "pos_att_type": "p2c|c2p"},
    "bloom": {},
    "gemma3_text": GROUPED | WINDOW | {"query_pre_attn_scalar": 8},
    "qwen3_moe": GROUPED
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def _build_model(family, head="base", **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SHAPE | FAMILIES[family] | changes))
    return HEADS[head].from_config(config).eval()


def _build_batch(padding="right", rows=3, length=12):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 100, (rows, length), generator=generator)
    mask = torch.ones_like(tokens)
    for row in range(1, rows):
        padded = slice(length - 3 * row, length) if padding == "right" else slice(0, 3 * row)
        mask[row, padded] = 0
    return {"input_ids": tokens.masked_fill(mask == 0, 1), "attention_mask": mask}


@pytest.fixture
def build_model():
    """Build a random model in eval mode: `build_model(family, head, **config_changes)`."""
    return _build_model


@pytest.fixture
def build_batch():
    """Build inputs whose rows 1, 2, ... have 3, 6, ... padding positions: `build_batch("left")`."""
    return _build_batch


QUICK = """
baseline = false
[student]
layers = 2
[task]
train = "{world}/train.jsonl"
validation = "{world}/validation.jsonl"
test = "{world}/test.jsonl"
max_length = 32
[output]
reuse = false
[training]
epochs = 1
batch_size = 16
lr = 1e-3
log_every = 2
"""


class _Entry:
    """An entry point without an installed package."""

    def __init__(self, plugin, name):
        self.name, self.value = name, name.replace("-", "_")
        self.dist = None
        self.plugin = plugin

    def load(self):
        return self.plugin


@pytest.fixture
def registry_with():
    """Build a registry of the installed plugins and others: objects with hook functions.

    The first is called `test`, the others `test-2` and so on.
    """
    from importlib.metadata import entry_points

    from gkd_core.plugins import Registry

    def _registry(*plugins):
        names = ["test", *(f"test-{number}" for number in range(2, len(plugins) + 1))]
        own = map(_Entry, plugins, names)
        return Registry([*entry_points(group="gkd"), *own])

    return _registry


@pytest.fixture
def prepare_run(world, tmp_path):
    """Prepare a run on the world that takes 6 steps: `prepare_run("method=soft", ...)`.

    Keywords: `directory` (its folder), `file` (text of a TOML file on top), `teachers` (folders of
    the world), `registry`, `listeners` and `sinks` (who is told beside `metrics.jsonl`).
    """
    from gkd_core.config.resolve import resolve
    from gkd_core.plugins import registry as installed
    from gkd_core.runs.run import Run, prepare_run
    from gkd_core.tracking.recorder import JsonLines, Recorder

    def _prepare(
        *settings,
        directory="run",
        file="",
        teachers=("teacher",),
        registry=None,
        listeners=(),
        sinks=(),
    ):
        registry = registry or installed()
        for name, text in (("quick", QUICK.format(world=world)), ("own", file)):
            (tmp_path / f"{name}.toml").write_text(text)
        named = [{"name": Path(t).name, "model": str(world / t)} for t in teachers]
        resolved = resolve(
            registry,
            files=[tmp_path / "quick.toml", tmp_path / "own.toml"],
            settings=list(map(str, settings)),
            flags={"teachers": (named, "--teacher")} if named else {},
        )
        specs = prepare_run(resolved, registry)
        folder = tmp_path / directory
        folder.mkdir(exist_ok=True)
        recorder = Recorder(
            [JsonLines(folder / "metrics.jsonl"), *listeners], sinks, registry.blame
        )
        return Run(resolved, registry, specs, folder, recorder)

    return _prepare
