"""Ranks of a tensor group draw alike, but for what each of them computes for itself."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from gkd_core.distributed.rng import RngTracker
from gkd_core.plugins import registry

KINDS = registry().kinds

CPU = torch.device("cpu")


def draw(rng, *openers):
    """Return what is drawn inside and after."""
    for opener in openers:
        rng.begin(opener, CPU)
    inside = torch.rand(3)
    rng.end(CPU)
    return inside.tolist(), torch.rand(3).tolist()


def twice(rank, *openers):
    torch.manual_seed(5)
    rng = RngTracker(rank)
    return [draw(rng, *openers) for _ in range(2)]


def test_draws_inside_are_a_ranks_own_and_those_after_common():
    first, second = twice(0, "q", "k"), twice(1, "q", "k")
    for (mine, after), (theirs, common) in zip(first, second, strict=True):
        assert mine != theirs
        assert after == common
    assert first[0] != first[1]
    assert first == twice(0, "q")


def test_recomputation_that_stops_inside_spoils_nothing():
    torch.manual_seed(5)
    rng = RngTracker(0)
    state = torch.get_rng_state()
    expected = draw(rng, "q", "k")
    torch.set_rng_state(state)
    rng.begin("q", CPU)  # no end
    torch.set_rng_state(state)
    assert draw(rng, "q", "k") == expected


def dropped(path, checkpointing):
    from gkd_core.parallel.sharding import shard_model

    model = KINDS["masked-lm"].auto.from_pretrained(path).train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".self.query" in name:
                weight.zero_()  # every head looks everywhere alike
            if ".self.value.weight" in name:
                weight.copy_(weight[:8].repeat(4, 1))  # and at the same
            if ".self.value.bias" in name:
                weight.copy_(weight[:8].repeat(4))
    shard_model(model, dist.group.WORLD)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    contexts = []
    outputs = model.bert.encoder.layer[0].attention.output.dense
    outputs.register_forward_pre_hook(lambda _, args: contexts.append(args[0].detach().numpy()))
    torch.manual_seed(7)
    logits = model(torch.arange(4, 24).view(2, 10)).logits
    logits.float().log_softmax(-1)[..., 1].mean().backward()
    gradients = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    return contexts[0], logits.detach().numpy(), gradients, torch.rand(2).tolist()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_heads_of_different_ranks_are_dropped_out_differently(on_ranks, checkpoint, checkpointing):
    path = checkpoint(
        "bert", "masked-lm", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3
    )
    (one, logits, _, state), (other, same, _, follows) = on_ranks(2, dropped, path, checkpointing)
    assert abs(one - other).max() > 0.01
    assert (logits == same).all()
    assert state == follows


def test_recomputation_draws_the_same(on_ranks, checkpoint):
    path = checkpoint(
        "bert", "masked-lm", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3
    )
    plain, again = (on_ranks(2, dropped, path, mode) for mode in (False, True))
    for (_, _, expected, _), (_, _, found, _) in zip(plain, again, strict=True):
        for name, gradient in expected.items():
            assert abs(found[name] - gradient).max() < 1e-6, name
