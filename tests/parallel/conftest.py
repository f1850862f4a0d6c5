"""What tests on several ranks share."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from gkd_core.testing import on_ranks

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
NO_DROPOUT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "dropout": 0.0,
    "seq_classif_dropout": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "classifier_dropout": 0.0,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64}
FAMILIES = {
    "bert": {"intermediate_size": 64},
    "roberta": {"intermediate_size": 64},
    "distilbert": {"hidden_dim": 64},
    "gpt2": {"n_inner": 64},
    "llama": GROUPED,
    "qwen3": GROUPED,
    "glm": GROUPED | {"attention_bias": True},
    "glm4": GROUPED,
    "mistral": GROUPED | {"sliding_window": 4},
    "qwen2": GROUPED,
    "gpt_neox": {"intermediate_size": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "electra": {"intermediate_size": 64, "embedding_size": 16},
    "modernbert": {"intermediate_size": 64, "local_attention": 4, "global_attn_every_n_layers": 2},
    "deberta-v2": {"intermediate_size": 64},
    "qwen3_moe": GROUPED
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def _known(family, wanted):
    from transformers import AutoConfig

    config = AutoConfig.for_model(family)
    return {name: value for name, value in wanted.items() if hasattr(config, name)}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Write a random tiny model and its tokenizer: `checkpoint("llama", "causal-lm", ...)` -> path.

    Keywords change its configuration. There is no dropout unless they say so. The vocabulary of 99
    divides evenly over 1 and 3 ranks only. Do not change what is written; equal calls share it.
    """
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, PreTrainedTokenizerFast

    from gkd_core.models.quiet import quiet
    from gkd_core.plugins import registry

    folder = tmp_path_factory.mktemp("checkpoints")
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]"
    )

    def _checkpoint(family, kind, **changes):
        path = folder / "-".join([family, kind, *map(str, changes.items())])
        if not path.exists():
            torch.manual_seed(0)
            wanted = SHAPE | _known(family, NO_DROPOUT) | FAMILIES[family] | changes
            model = registry().kind(kind).auto.from_config(AutoConfig.for_model(family, **wanted))
            for name, weight in model.named_parameters():
                if name.endswith("bias") or "norm" in name.lower():
                    torch.nn.init.normal_(weight, mean=float("norm" in name.lower()), std=0.2)
            with quiet():
                model.save_pretrained(path)
                tokenizer.save_pretrained(path)
        return path

    return _checkpoint


@pytest.fixture(name="on_ranks")
def _on_ranks():
    """Call a function of the test's module on every rank of a new gloo world."""
    return on_ranks


@pytest.fixture(scope="session")
def runs():
    """The module `runs.py` beside this file, whose functions `on_ranks` can call."""
    name = "runs"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("runs.py"))
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def still(world, tmp_path_factory):
    """The world without dropout, whose draws are each rank's own."""
    folder = tmp_path_factory.mktemp("still") / "world"
    shutil.copytree(world, folder)
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        zero = {name: 0.0 for name in config if name.endswith("dropout_prob")}
        path.write_text(json.dumps(config | zero))
    return folder
