"""What is captured of a divided model is what is captured of a whole one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.forward import Change, checkpoint_contexts
from gkd_core.hooks.paths import ATTENTION_SITES, LOGITS, Capture
from gkd_core.models.sites import find_sites
from gkd_core.plugins import registry

KINDS = registry().kinds

SITES = [
    Capture("hidden", 0),
    Capture("hidden", 1),
    Capture("hidden", 2),
    Capture("ffn", 1),
    Capture("query", 2),
    Capture("key", 2),
    Capture("value", 2),
    Capture("scores", 1),
    Capture("probs", 2),
    Capture("context", 1),
    Capture("context", 2, reduce="mean"),
    Capture("logits"),
]
FAMILIES = [
    ("bert", "masked-lm", 2, 2, 2),
    ("bert", "classification", 2, 2, 2),
    ("gpt2", "causal-lm", 2, 2, 2),
    ("qwen3", "causal-lm", 2, 2, 1),
    ("llama", "causal-lm", 4, 1, 1),
]
"""Family, task, ranks, and the query and key heads of each."""


def batch():
    tokens = torch.arange(4, 24).view(2, 10)
    mask = torch.ones_like(tokens)
    mask[1, 7:] = 0
    return {"input_ids": tokens.masked_fill(mask == 0, 1), "attention_mask": mask}


def extractors(path, kind):
    """Of the whole model, and of the same model divided over all ranks."""
    from gkd_core.parallel.sharding import shard_model

    whole, divided = (KINDS[kind].auto.from_pretrained(path).train() for _ in range(2))
    shard_model(divided, dist.group.WORLD)
    return [Extractor(model, find_sites(model)) for model in (whole, divided)]


def apart(one, other):
    assert one.shape == other.shape
    # The least float stands where scores are masked.
    seen = one > torch.finfo(one.dtype).min
    return (torch.where(seen, one - other, 0.0)).abs().max().item()


def gradients_apart(whole, divided):
    """How far the gradients of a divided model are from our share of those of the whole one."""
    splits = divided.sharding.splits
    found = {}
    for (name, theirs), ours in zip(whole.named_parameters(), divided.parameters(), strict=True):
        assert (theirs.grad is None) == (ours.grad is None), name
        if theirs.grad is not None:
            expected = theirs.grad
            if name in splits:
                expected = splits[name].shard(expected, dist.get_rank())
            found[name] = (expected - ours.grad).abs().max().item()
    return found


def capture(path, kind):
    captures = [*SITES, *([Capture("pooled")] if kind == "classification" else [])]
    whole, divided = extractors(path, kind)
    expected, found = (e.run(frozenset(captures), batch()) for e in (whole, divided))
    own = [found.shares[c].shape[1] for c in (Capture("query", 2), Capture("key", 2))]
    differences = {str(c): apart(expected[c], found[c]) for c in captures}
    for features in (expected, found):
        parts = [features[c].masked_fill(features[c] < -1e4, 0.0).square().mean() for c in captures]
        sum(parts).backward()
    return differences | gradients_apart(whole.model, divided.model), own


@pytest.mark.parametrize(("family", "kind", "ranks", "heads", "keys"), FAMILIES)
def test_tensors_are_whole_and_pass_gradients_on(
    on_ranks, checkpoint, family, kind, ranks, heads, keys
):
    for differences, own in on_ranks(ranks, capture, checkpoint(family, kind), kind):
        assert max(differences.values()) < 1e-5, differences
        assert own == [heads, keys]


def change(path, kind, site, checkpointed):
    """Read the logits after an operation that mixes heads, and the tensor that it left."""
    place = Capture(site, 1)
    inputs = batch()
    dim = -1 if site == "context" else 1

    def mix(tensor):
        assert tensor.shape[dim] == {"context": 32, "key": 2, "value": 2}.get(site, 4)
        return tensor + 0.1 * tensor.flip(dim).tanh()

    both = extractors(path, kind)
    for extractor in both if checkpointed else ():
        extractor.model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={
                "use_reentrant": False,
                "context_fn": checkpoint_contexts,
            }
        )
    found = [e.run(frozenset([place, LOGITS]), inputs, [Change(place, mix)]) for e in both]
    differences = {str(c): apart(*(features[c] for features in found)) for c in (place, LOGITS)}
    for features in found:
        features[LOGITS].square().mean().backward()
    with torch.no_grad():
        plain = both[0].run(frozenset([LOGITS]), inputs)[LOGITS]
    effect = (plain - found[0][LOGITS]).abs().max().item()
    return differences | gradients_apart(*(e.model for e in both)), effect


@pytest.mark.exhaustive
def test_operations_see_all_heads_also_under_gradient_checkpointing(on_ranks, runs, checkpoint):
    path = checkpoint("llama", "causal-lm")
    sites = [site for site in ATTENTION_SITES if site != "attention"]
    cases = [(path, "causal-lm", site, False) for site in sites]
    cases.append((path, "causal-lm", "key", True))
    for found in on_ranks(4, runs.each, change, cases):
        for case, (differences, effect) in zip(cases, found, strict=True):
            assert max(differences.values()) < 1e-5, (case, differences)
            assert effect > 1e-3, case


def deferred(path, kind):
    """Logits that no tensor holds, with an own rank's columns."""
    _, divided = extractors(path, kind)
    logits = divided.run(frozenset([LOGITS]), batch()).prediction
    return type(logits).__name__, tuple(logits.shape), len(logits.weight)


@pytest.mark.parametrize(
    ("family", "kind"), [("bert", "masked-lm"), ("gpt2", "causal-lm"), ("llama", "causal-lm")]
)
def test_logits_of_a_divided_language_model_are_not_computed(on_ranks, checkpoint, family, kind):
    for found in on_ranks(2, deferred, checkpoint(family, kind), kind):
        assert found == ("LinearLogits", (2, 10, 99), 50)


def joined(path, rows):
    """Read everything after the ranks have put it together, when they no longer communicate."""
    captures = [*SITES, Capture("attention", 2)]
    inputs = {name: tensor.repeat(rows, 1) for name, tensor in batch().items()}
    whole, divided = extractors(path, "causal-lm")
    with torch.no_grad():
        expected, found = (e.run(frozenset(captures), inputs) for e in (whole, divided))
        found.gather()
    logits = type(found.prediction).__name__
    dist.all_gather = dist.all_reduce = pytest.fail
    differences = {str(c): apart(expected[c], found[c]) for c in SITES}
    scores = (side.attention[Capture("attention", 2)].scores() for side in (expected, found))
    return differences | {"attention": apart(*scores)}, logits


@pytest.mark.parametrize(("rows", "logits"), [(1, "Tensor"), (4, "LinearLogits")])
def test_what_is_put_together_is_whole_on_every_rank(on_ranks, checkpoint, rows, logits):
    for differences, kind in on_ranks(2, joined, checkpoint("qwen3", "causal-lm"), rows):
        assert max(differences.values()) < 1e-5, differences
        assert kind == logits
