"""When what ZeRO takes is there, as DeepSpeed has it."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from gkd_core.config.schema import RunConfig
from gkd_core.optim.deepspeed import BUCKET
from gkd_core.optim.groups import ChosenOptimizer
from gkd_core.optim.optimizers.adamw import AdamW
from gkd_core.planning import gathering
from gkd_core.planning.gathering import Gathering
from gkd_core.planning.memory_tracker import TRANSIT, MemoryTracker
from gkd_core.planning.zero import ZeroEngine

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture
def student():
    """A Llama of two blocks."""
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


@pytest.mark.parametrize("zero", [1, 2])
def test_the_bucket_of_gradients_is_made_with_the_first_of_them(student, zero):
    """Not before backward, when what the loss has kept is still there."""
    config = RunConfig.model_validate({"parallel": {"zero": zero}})
    tracker = MemoryTracker()
    chosen = ChosenOptimizer(AdamW(AdamW.Config(), config.training))
    arguments = (student, nn.Module(), config, 1, torch.device("cpu"), MappingProxyType({}), chosen)
    engine = ZeroEngine(*arguments, tracker)
    seen = []
    with tracker:
        logits = student(torch.zeros(1, 4, dtype=torch.int64)).logits
        logits.register_hook(lambda _: seen.append(tracker.live[TRANSIT]))
        engine.backward(logits.sum(), last=False)
    assert seen == [0]
    assert tracker.peak[TRANSIT] >= 4 * BUCKET


def test_weights_fetched_together_are_copied_out_of_a_buffer(student, monkeypatch):
    """The buffer goes when the last of them is used."""
    monkeypatch.setattr(gathering, "EARLY", 10**9)
    tracker = MemoryTracker()
    blocks = [p for p in student.model.layers.parameters() if p.dim() == 2]
    Gathering(student, blocks, tracker, ranks=2)
    seen = []
    for layer in student.model.layers:
        layer.input_layernorm.register_forward_hook(lambda *_: seen.append(tracker.live[TRANSIT]))
    with tracker, torch.no_grad():
        student(torch.zeros(1, 4, dtype=torch.int64))
    size = sum(p.nbytes for p in blocks)
    first = blocks[0].nbytes
    # The first weight comes alone, all others with it are fetched early.
    assert seen == [0, size + size - first]
    assert tracker.live[TRANSIT] == size
