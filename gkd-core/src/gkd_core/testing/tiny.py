"""Random models and batches that are small enough for tests."""

from __future__ import annotations

import torch
from transformers import AutoConfig
from transformers import PreTrainedModel as Model

from gkd_core.contract.batch import IGNORE, Batch
from gkd_core.plugins import registry

VOCABULARY = 64
CLASSES = 3
PAD = 0
FAMILY = {"causal-lm": "llama"}
"""Architecture of the tiny model of a kind, unless it is a BERT."""


def tiny_model(kind: str, layers: int, seed: int) -> Model:
    """Return a random fp64 model in eval mode, of width 32 with 4 heads.

    Args:
        kind: `classification` gives a BERT with 3 classes, `causal-lm` a Llama.
        layers: Number of blocks.
        seed: Seed of the weights.
    """
    config = AutoConfig.for_model(
        FAMILY.get(kind, "bert"),
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=CLASSES,
        pad_token_id=PAD,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Model = registry().kind(kind).auto.from_config(config)
    return model.double().eval()


def tiny_batch(kind: str, rows: int = 4, length: int = 10) -> Batch:
    """Return a batch of random tokens whose rows have different lengths, padded on the right.

    Args:
        kind: `classification` gives a label per row, `causal-lm` one per position.
        rows: Number of rows.
        length: Tokens of the longest row.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCABULARY, (rows, length), generator=generator)
    lengths = length - 2 * torch.arange(rows) % (length - 2)
    mask = torch.arange(length) < lengths.unsqueeze(1)
    tokens = tokens.masked_fill(~mask, PAD)
    if registry().kind(kind).is_lm:
        following = tokens.roll(-1, dims=1)
        has_next = mask.roll(-1, dims=1)
        has_next[:, -1] = False
        labels = following.masked_fill(~has_next, IGNORE)
    else:
        labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    inputs = {"input_ids": tokens, "attention_mask": mask.long()}
    # Two tokens per word.
    words = (torch.arange(length) // 2).expand(rows, -1).masked_fill(~mask, -1)
    return Batch(inputs, labels, torch.arange(rows), words=words)
