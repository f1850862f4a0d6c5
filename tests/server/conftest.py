"""A tiny model on a real vLLM server, for the tests of this folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.server.serving import free_port, serving

ROOT = Path(__file__).parents[2]
ENVIRONMENT = "GKD_VLLM"
"""Names the environment in which vLLM is, or is to be installed."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A Llama with random weights, and heads as wide as vLLM has kernels for."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("served") / "model"
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([(ROOT / "README.md").read_text()], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def environment():
    """The environment in which vLLM is, or is to be installed."""
    found = os.environ.get(ENVIRONMENT)
    if not found:
        pytest.skip(f"{ENVIRONMENT} names no environment of vLLM; make test-server sets it")
    return found


@pytest.fixture(scope="session")
def url(folder, environment, tmp_path_factory):
    """The address of a server of the model."""
    port = free_port()
    command = [str(ROOT / "tools" / "serve-vllm"), str(folder), str(port), environment]
    with serving(command, port, tmp_path_factory.mktemp("log")) as address:
        yield address
