"""Divided models compute what whole ones do."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from gkd_core.errors import ConfigError
from gkd_core.plugins import registry

KINDS = registry().kinds

TOLERANCE = 1e-5


def whole(path, kind):
    return KINDS[kind].auto.from_pretrained(path).train()


def divided(path, kind):
    from gkd_core.parallel.sharding import shard_model

    return shard_model(whole(path, kind), dist.group.WORLD)


def batch():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 99, (3, 12), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, 8:] = mask[2, 10:] = 0
    return {"input_ids": tokens.masked_fill(mask == 0, 1), "attention_mask": mask}


def loss_of(model):
    logits = model(**batch()).logits
    return logits, logits.float().log_softmax(-1)[..., 1].mean()


def step(model):
    logits, loss = loss_of(model)
    loss.backward()
    used = {n: weight for n, weight in model.named_parameters() if weight.grad is not None}
    gradients = {name: weight.grad.clone() for name, weight in used.items()}
    # A key bias has no gradient but rounding errors, which a small eps would blow up.
    torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3).step()
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    return {"logits": logits.detach()}, gradients, weights


def differences(ours, theirs, splits):
    """Return the names of tensors that differ by more than the tolerance from our share."""
    assert ours.keys() == theirs.keys()
    shares = {
        n: splits[n].shard(t, dist.get_rank()) if n in splits else t for n, t in theirs.items()
    }
    return [n for n, t in ours.items() if (t - shares[n]).abs().max().item() > TOLERANCE]


def compare(path, kind):
    model = divided(path, kind)
    reference = whole(path, kind)
    share = sum(p.numel() for p in model.parameters()) / reference.num_parameters()
    splits = model.sharding.splits
    found = [
        differences(ours, theirs, splits if index else {})
        for index, (ours, theirs) in enumerate(zip(step(model), step(reference), strict=True))
    ]
    kept = {n: p.detach().numpy() for n, p in model.named_parameters() if n not in splits}
    return found, share, kept


def cases(*families):
    encoders = ("bert", "roberta", "distilbert", "electra", "modernbert")
    return [
        (family, kind)
        for family in families
        for kind in ("classification", "masked-lm" if family in encoders else "causal-lm")
    ]


MAIN = cases("bert", "roberta", "distilbert", "gpt2", "llama", "qwen3", "glm")
MORE = cases("glm4", "mistral", "qwen2", "gpt_neox", "opt", "electra", "modernbert")
LATER = [(family, "classification") for family in ("roberta", "distilbert", "qwen3", "glm")]
QUICK = [case for case in MAIN if case not in LATER]
QUICK += [("opt", "causal-lm"), ("modernbert", "masked-lm"), ("electra", "masked-lm")]
SLOW = {
    2: [case for case in MAIN + MORE if case not in QUICK],
    4: [case for case in MAIN + MORE if case != ("llama", "causal-lm")],
}
rest = [pytest.mark.slow, pytest.mark.exhaustive]


def check_parity(on_ranks, runs, cases, ranks):
    found = on_ranks(ranks, runs.each, compare, cases)
    for case, outcomes in zip(cases, zip(*found, strict=True), strict=True):
        for differing, share, _ in outcomes:
            assert differing == [[], [], []], case
            assert share < {2: 0.62, 4: 0.45}[ranks], case
        first = outcomes[0][2]
        for *_, kept in outcomes[1:]:
            assert all((kept[name] == first[name]).all() for name in first), case


@pytest.mark.parametrize(
    ("ranks", "families"),
    [(2, QUICK), (4, [("llama", "causal-lm")])]
    + [pytest.param(ranks, SLOW[ranks], marks=rest) for ranks in SLOW],
    ids=["2", "4", "2, others", "4, others"],
)
def test_forward_gradients_and_a_step_equal_the_whole_model(
    on_ranks, runs, checkpoint, ranks, families
):
    cases = [(checkpoint(family, kind), kind) for family, kind in families]
    check_parity(on_ranks, runs, cases, ranks)


def test_experts_stay_whole_where_attention_is_divided(on_ranks, checkpoint):
    path = checkpoint("qwen3_moe", "causal-lm")
    for (logits, gradients, weights), _, kept in on_ranks(2, compare, path, "causal-lm"):
        assert not logits
        assert not gradients
        assert not weights
        assert "model.layers.0.mlp.experts.down_proj" in kept
        assert "model.layers.0.self_attn.q_proj.weight" not in kept


def test_an_lm_head_of_its_own_and_a_tied_one_equal_the_whole_model(on_ranks, runs, checkpoint):
    families = [("llama", "causal-lm"), ("gpt2", "causal-lm"), ("bert", "masked-lm")]
    cases = [
        (checkpoint(family, kind, tie_word_embeddings=family == "llama"), kind)
        for family, kind in families
    ]
    check_parity(on_ranks, runs, cases, 2)


def stay_whole(path):
    from gkd_core.distributed.shards import sharding_of
    from gkd_core.parallel.sharding import shard_model

    model = whole(path, "causal-lm")
    layers = [type(module) for module in model.modules()]
    same = shard_model(model, dist.group.WORLD)
    return same is model and layers == [type(m) for m in same.modules()] and not sharding_of(model)


def test_one_rank_has_the_whole_model(on_ranks, checkpoint):
    assert on_ranks(1, stay_whole, checkpoint("llama", "causal-lm")) == [True]


def mixed(path):
    found = []
    for model in (divided(path, "causal-lm"), whole(path, "causal-lm")):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, loss = loss_of(model)
        loss.backward()
        norm = model.model.layers[0].input_layernorm.weight
        found.append((logits.dtype == torch.bfloat16, logits.detach().float(), norm.grad))
    (low, ours, our_norm), (_, theirs, their_norm) = found
    apart = (ours - theirs).abs().max() / theirs.abs().max()
    return low, apart.item(), ((our_norm - their_norm).norm() / their_norm.norm()).item()


def test_bf16_autocast_comes_as_close_as_bf16_does(on_ranks, checkpoint):
    for low, logits, gradient in on_ranks(2, mixed, checkpoint("llama", "causal-lm")):
        assert low
        assert logits < 0.02
        assert gradient < 0.05


def frozen(path):
    reference, model = whole(path, "causal-lm"), divided(path, "causal-lm").requires_grad_(False)
    with torch.no_grad():
        expected = loss_of(reference)[0]
        plain = loss_of(model)[0]
    # A trained module below a frozen model gets its gradient through it.
    found = []
    for each in (reference.requires_grad_(False), model):
        vectors = torch.randn(2, 6, 32, generator=torch.manual_seed(2)).requires_grad_()
        each(inputs_embeds=vectors).logits.float().log_softmax(-1)[..., 1].mean().backward()
        found.append(vectors.grad)
    return [(plain - expected).abs().max().item(), (found[0] - found[1]).abs().max().item()]


def test_a_frozen_model_passes_gradients_through(on_ranks, checkpoint):
    for outputs, gradients in on_ranks(2, frozen, checkpoint("qwen3", "causal-lm")):
        assert outputs < TOLERANCE
        assert gradients < TOLERANCE


def checkpointed(path):
    model, reference = divided(path, "causal-lm"), whole(path, "causal-lm")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    splits = model.sharding.splits
    return differences(step(model)[1], step(reference)[1], splits)


def test_gradient_checkpointing_gives_the_same_gradients(on_ranks, checkpoint):
    assert on_ranks(2, checkpointed, checkpoint("qwen3", "causal-lm")) == [[], []]


def dropped(path, kind):
    model = divided(path, kind)
    torch.manual_seed(7)
    hidden = model(**batch(), output_hidden_states=True).hidden_states
    torch.manual_seed(8)
    other = model(**batch(), output_hidden_states=True).hidden_states
    return [h.detach().numpy() for h in hidden], (hidden[-1] - other[-1]).abs().max().item()


def test_dropout_from_equal_seeds_keeps_the_ranks_together(on_ranks, checkpoint):
    path = checkpoint(
        "bert", "masked-lm", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3
    )
    (first, change), (second, _) = on_ranks(2, dropped, path, "masked-lm")
    assert change > 0.1
    assert all((one == other).all() for one, other in zip(first, second, strict=True))


def kept_names(path, kind):
    model, reference = divided(path, kind), whole(path, kind)
    state = model.state_dict()
    model.load_state_dict(state)
    marked = {n for n, p in model.named_parameters() if getattr(p, "tensor_model_parallel", False)}
    unmarked = set(dict(model.named_parameters())) - marked
    return list(state) == list(reference.state_dict()), marked, unmarked


def test_weights_keep_their_names_and_shards_are_marked(on_ranks, checkpoint):
    for same, marked, unmarked in on_ranks(
        2, kept_names, checkpoint("qwen3", "causal-lm"), "causal-lm"
    ):
        assert same
        assert "model.embed_tokens.weight" in marked
        assert "model.layers.0.self_attn.k_proj.weight" in marked
        assert "model.layers.0.self_attn.k_norm.weight" in unmarked
        assert "model.norm.weight" in unmarked


def refuse(path, kind):
    try:
        divided(path, kind)
    except ConfigError as error:
        return str(error)


def test_a_family_without_a_plan_is_refused(on_ranks, checkpoint):
    for message in on_ranks(2, refuse, checkpoint("deberta-v2", "masked-lm"), "masked-lm"):
        assert "deberta-v2 models cannot be divided" in message
        assert "bert" in message
        assert "llama" in message
