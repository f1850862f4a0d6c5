"""What is captured of a divided model."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.paths import Capture
from gkd_core.models.load import HEADS
from gkd_core.models.sites import find_sites

WHOLE = [
    Capture("hidden", 0),
    Capture("hidden", 1),
    Capture("hidden", 2),
    Capture("ffn", 1),
    Capture("logits"),
]
OWN_HEADS = [Capture("query", 2), Capture("key", 2), Capture("value", 2), Capture("probs", 1)]


def capture(path, kind):
    from gkd_core.parallel.sharding import shard_model

    tokens = torch.arange(4, 24).view(2, 10)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    everywhere = [*WHOLE, Capture("pooled")] if kind == "classification" else WHOLE
    found = []
    for divided in (False, True):
        model = HEADS[kind].auto.from_pretrained(path).eval()
        model = shard_model(model, dist.group.WORLD) if divided else model
        extractor = Extractor(model, find_sites(model))
        with torch.no_grad():
            features = extractor.run(frozenset([*everywhere, *OWN_HEADS]), inputs)
            found.append({c: features[c] for c in [*everywhere, *OWN_HEADS]})
    reference, own = found
    apart = {str(c): (own[c] - reference[c]).abs().max().item() for c in everywhere}
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for c in OWN_HEADS:
        width = own[c].shape[1]
        heads = reference[c].shape[1]
        first = rank * heads // ranks
        apart[str(c)] = (own[c] - reference[c][:, first : first + width]).abs().max().item()
    return apart, [own[c].shape[1] for c in OWN_HEADS]


@pytest.mark.parametrize(
    ("family", "kind", "ranks", "heads"),
    [
        ("bert", "masked-lm", 2, [2, 2, 2, 2]),
        ("bert", "classification", 2, [2, 2, 2, 2]),
        ("gpt2", "causal-lm", 2, [2, 2, 2, 2]),
        ("qwen3", "causal-lm", 2, [2, 1, 1, 2]),
        ("llama", "causal-lm", 4, [1, 1, 1, 1]),
    ],
)
def test_hidden_states_and_logits_are_whole_and_heads_a_ranks_own(
    on_ranks, checkpoint, family, kind, ranks, heads
):
    for apart, own in on_ranks(ranks, capture, checkpoint(family, kind), kind):
        assert max(apart.values()) < 1e-5, apart
        assert own == heads
