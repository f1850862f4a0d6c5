import copy
import gc
import weakref

import pytest
import torch

from gkd_core.errors import MethodError
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.paths import Capture
from gkd_core.models.sites import Sites, find_sites

ENCODERS = ["bert", "roberta", "distilbert", "electra", "modernbert", "mobilebert"]
DECODERS = ["gpt2", "llama", "qwen3", "glm", "glm4", "mistral", "qwen2", "gpt_neox", "opt"]
HIDDEN_ONLY = [("deberta-v2", "masked-lm", "right"), ("bloom", "causal-lm", "right")]
MODELS = [(f, h, "right") for f in ENCODERS for h in ("base", "classification", "masked-lm")] + [
    (f, h, p)
    for f in DECODERS
    for h in ("base", "classification", "causal-lm")
    for p in ("right", "left")
]
MODELS += HIDDEN_ONLY
LOGITS = Capture("logits")
HIDDEN = [Capture("hidden", layer) for layer in range(4)]
NORMED = Capture("hidden", 3, normed=True)
INNER = [Capture(site, 2) for site in ("query", "key", "value", "probs", "context")]
REDUCED = [
    Capture(site, layer, reduce=reduce)
    for site, layer in (("hidden", 2), ("context", 2))
    for reduce in ("cls", "mean")
]


def extractor(model):
    return Extractor(model, find_sites(model))


def hook_count(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def record_calls(modules):
    calls = []
    for module in modules:
        module.register_forward_pre_hook(lambda module, args: calls.append(module))
    return calls


@pytest.mark.parametrize(("family", "head", "padding"), MODELS)
@torch.no_grad()
def test_hidden_states_equal_those_of_the_stock_model(
    build_model, build_batch, family, head, padding
):
    model = build_model(family, head)
    sites = find_sites(model)
    batch = build_batch(padding)
    last = []
    handle = sites.blocks[-1].register_forward_hook(lambda m, args, output: last.append(output))
    stock = model(**batch, output_hidden_states=True)
    handle.remove()
    captures = frozenset([*HIDDEN, NORMED]) | ({LOGITS} if head != "base" else set())
    features = Extractor(model, sites).run(captures, batch)
    for capture in HIDDEN[:3]:
        assert torch.equal(features[capture], stock.hidden_states[capture.layer])
    raw = last[0][0] if isinstance(last[0], tuple) else last[0]
    assert torch.equal(features[HIDDEN[3]], raw)
    assert torch.equal(features[NORMED], stock.hidden_states[3])
    if head != "base":
        assert torch.equal(features[LOGITS], stock.logits)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
def test_capturing_does_not_change_the_logits(build_model, build_batch, family, gradients):
    model = build_model(family, "classification")
    batch = build_batch()
    with torch.set_grad_enabled(gradients):
        stock = model(**batch).logits
        captured = extractor(model).run(frozenset([*HIDDEN, *INNER, *REDUCED, LOGITS]), batch)
    assert torch.equal(captured[LOGITS], stock)


@pytest.mark.parametrize(
    ("family", "padding"), [("bert", "right"), ("llama", "right"), ("llama", "left")]
)
@torch.no_grad()
def test_reduced_captures_equal_reduction_afterwards(build_model, build_batch, family, padding):
    batch = build_batch(padding)
    wholes = [Capture(c.site, c.layer) for c in REDUCED]
    features = extractor(build_model(family)).run(frozenset([*REDUCED, *wholes]), batch)
    for capture, whole in zip(REDUCED, wholes, strict=True):
        for row, mask in enumerate(batch["attention_mask"].bool()):
            real = features[whole][row][mask]
            summary = real[-1] if family == "llama" else real[0]
            expected = summary if capture.reduce == "cls" else real.mean(0)
            torch.testing.assert_close(features[capture][row], expected)


def test_missing_attention_mask_means_no_padding(build_model, build_batch):
    batch = build_batch(rows=1)
    reader = extractor(build_model("bert"))
    captures = frozenset([Capture("hidden", 1, reduce="mean"), Capture("hidden", 1)])
    features = reader.run(captures, {"input_ids": batch["input_ids"]})
    whole = features[Capture("hidden", 1)]
    torch.testing.assert_close(features[Capture("hidden", 1, reduce="mean")], whole.mean(1))


@torch.no_grad()
def test_nothing_asked_runs_nothing(build_model, build_batch):
    model = build_model("bert", "classification")
    calls = record_calls(model.modules())
    assert extractor(model).run(frozenset(), build_batch()).tensors == {}
    assert calls == []


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "glm4"])
@pytest.mark.parametrize(
    ("captures", "blocks"),
    [
        ([Capture("hidden", 0)], 0),
        ([Capture("hidden", 2, reduce="cls")], 2),
        ([Capture("hidden", 1), Capture("probs", 2)], 2),
        ([Capture("context", 3)], 3),
        ([NORMED], 3),
    ],
)
@torch.no_grad()
def test_teacher_stops_after_what_is_needed(build_model, build_batch, family, captures, blocks):
    model = build_model(family, "classification")
    sites = find_sites(model)
    heads = [m for n, m in model.named_children() if n != model.base_model_prefix]
    calls = record_calls([*sites.attentions, *heads])
    Extractor(model, sites).run(frozenset(captures), build_batch())
    assert calls == list(sites.attentions[:blocks])


@torch.no_grad()
def test_teacher_stops_before_attention_is_computed_if_only_its_inputs_are_read(
    build_model, build_batch
):
    model = build_model("bert", "classification")
    sites = find_sites(model)
    projection = model.bert.encoder.layer[1].attention.output
    calls = record_calls([projection])
    Extractor(model, sites).run(frozenset([Capture("key", 2)]), build_batch())
    assert calls == []
    Extractor(model, sites).run(frozenset([Capture("key", 2), LOGITS]), build_batch())
    assert calls == [projection]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "distilbert"])
def test_student_runs_whole_but_without_an_unread_head(build_model, build_batch, family):
    model = build_model(family, "classification")
    sites = find_sites(model)
    heads = [m for n, m in model.named_children() if n != model.base_model_prefix]
    calls = record_calls([*sites.blocks, *heads])
    features = Extractor(model, sites).run(frozenset([Capture("hidden", 1)]), build_batch())
    assert calls == list(sites.blocks)
    assert features[Capture("hidden", 1)].requires_grad


def test_only_what_was_read_is_hooked_and_each_place_once(build_model, build_batch):
    model = build_model("bert", "classification")
    reader = extractor(model)
    reader.run(frozenset([LOGITS]), build_batch())
    assert hook_count(model) == hook_count(model.bert) + 1 == 1
    captures = frozenset([Capture("hidden", 2), Capture("hidden", 2, reduce="cls"), LOGITS, *INNER])
    for _ in range(2):
        reader.run(captures, build_batch())
        assert hook_count(model.bert) == len(model.bert.encoder.layer[1]._forward_hooks) == 1
    reader.run(frozenset([LOGITS]), build_batch())
    reader.remove()
    assert hook_count(model) == 0


def test_installed_hooks_record_nothing_outside_a_run(build_model, build_batch):
    model = build_model("gpt2", "classification")
    reader = extractor(model)
    captures = frozenset([*HIDDEN, *INNER])
    features = reader.run(captures, build_batch())
    before = dict(features.tensors)
    with torch.no_grad():
        model(**build_batch("left", rows=2))
    assert all(features.tensors[capture] is tensor for capture, tensor in before.items())
    assert len(features.tensors) == len(before)


def test_failed_run_leaves_the_extractor_usable(build_model, build_batch):
    reader = extractor(build_model("bert"))
    captures = frozenset([Capture("hidden", 1)])
    with pytest.raises(IndexError):
        reader.run(captures, {"input_ids": torch.tensor([[1000]])})
    assert reader.run(captures, build_batch())[Capture("hidden", 1)].shape == (3, 12, 32)


@torch.no_grad()
def test_two_extractors_of_one_model_do_not_disturb_each_other(build_model, build_batch):
    model = build_model("llama")
    first, second = extractor(model), extractor(model)
    captures, other = frozenset([Capture("probs", 1)]), frozenset([Capture("probs", 2)])
    expected = first.run(captures, build_batch())[Capture("probs", 1)]
    second.run(other, build_batch())
    first.remove()
    second.run(other, build_batch())
    assert torch.equal(first.run(captures, build_batch())[Capture("probs", 1)], expected)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_reduced_capture_keeps_no_whole_tensor_alive(build_model, build_batch, family, gradients):
    model = build_model(family)
    sites = find_sites(model)
    seen = []
    sites.blocks[1].register_forward_hook(lambda m, args, out: seen.append(weakref.ref(out)))
    reader = Extractor(model, sites)
    captures = frozenset([Capture("hidden", 2, reduce="cls"), Capture("hidden", 2, reduce="mean")])
    gc.disable()
    try:
        with torch.set_grad_enabled(gradients):
            features = reader.run(captures, build_batch())
        # Block 3 saves its input for backward; the graph is another owner than the features.
        tensors = [tensor.detach() for tensor in features.tensors.values()]
        del features
        assert seen[0]() is None
    finally:
        gc.enable()
    assert all(t.untyped_storage().nbytes() == 3 * 32 * 4 for t in tensors)


def loss_of(features):
    captures = [*HIDDEN, *INNER, *REDUCED, NORMED, LOGITS]
    return sum((features[c].float() * (i + 1)).square().mean() for i, c in enumerate(captures))


def gradients_of(model, batch):
    captures = frozenset([*HIDDEN, *INNER, *REDUCED, NORMED, LOGITS])
    torch.manual_seed(7)
    loss = loss_of(extractor(model).run(captures, batch))
    loss.backward()
    return loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


DROPOUT = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "distilbert": ("dropout", "attention_dropout"),
    "gpt2": ("resid_pdrop", "attn_pdrop"),
    "llama": ("attention_dropout", "attention_dropout"),
    "glm4": ("attention_dropout", "attention_dropout"),
}


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("family", list(DROPOUT))
def test_checkpointing_changes_no_capture_and_no_gradient(build_model, build_batch, family, rate):
    model = build_model(family, "classification", **dict.fromkeys(DROPOUT[family], rate)).train()
    twin = copy.deepcopy(model)
    twin.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls = record_calls([module for module in twin.modules() if not list(module.children())])
    loss, gradients = gradients_of(model, build_batch())
    twin_loss, twin_gradients = gradients_of(twin, build_batch())
    assert len(calls) > len(set(calls)), "nothing was recomputed"
    assert torch.equal(twin_loss, loss)
    assert twin_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(twin_gradients[name], gradient)


def test_recomputation_records_nothing(build_model, build_batch):
    model = build_model("bert", "classification").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    features = extractor(model).run(frozenset([*HIDDEN, *INNER, LOGITS]), build_batch())
    features[INNER[3]].square().mean().backward(retain_graph=True)
    before = dict(features.tensors)
    features[LOGITS].square().mean().backward()
    assert all(features.tensors[capture] is tensor for capture, tensor in before.items())


def test_reentrant_checkpointing_of_attention_is_refused(build_model, build_batch):
    model = build_model("bert").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(MethodError, match="use_reentrant=False"):
        extractor(model).run(frozenset([Capture("value", 1)]), build_batch())


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_autocast_keeps_types_and_fp32_probs(build_model, build_batch, family):
    model = build_model(family, "classification")
    batch = build_batch()
    captures = frozenset([*HIDDEN, *INNER, *REDUCED, LOGITS])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stock = model(**batch, output_hidden_states=True)
        features = extractor(model).run(captures, batch)
        probs = features[Capture("probs", 2)]
    assert torch.equal(features[LOGITS], stock.logits)
    for capture in HIDDEN[:3]:
        assert torch.equal(features[capture], stock.hidden_states[capture.layer])
    assert features[Capture("value", 2)].dtype == torch.bfloat16
    reduced = Capture("context", 2, reduce="mean")
    assert features[reduced].dtype == torch.bfloat16
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(-1), torch.ones(3, 4, 12))


def test_logits_of_a_headless_model_are_refused(build_model, build_batch):
    with pytest.raises(MethodError, match="BertModel has no head"):
        extractor(build_model("bert")).run(frozenset([LOGITS]), build_batch())


def test_site_that_the_model_does_not_come_past_is_reported(build_model, build_batch):
    class WrongSites(Sites):
        def find_blocks(self):
            return copy.deepcopy(super().find_blocks())

        def find_final_norm(self):
            return None

    model = build_model("bert")
    with pytest.raises(MethodError, match=r"did not compute hidden\[2\]"):
        Extractor(model, WrongSites(model)).run(frozenset([Capture("hidden", 2)]), build_batch())


def test_norm_before_the_blocks_is_not_taken_for_the_final_one(build_model, build_batch):
    class WrongSites(Sites):
        def find_final_norm(self):
            return self.model.base_model.embeddings.LayerNorm

    model = build_model("bert")
    with pytest.raises(MethodError, match=r"the norm found in BertModel runs before its last"):
        Extractor(model, WrongSites(model)).run(frozenset([NORMED]), build_batch())


@torch.no_grad()
def test_last_state_of_deberta_v3_is_what_it_returns(build_model, build_batch):
    model = build_model("deberta-v2", norm_rel_ebd="layer_norm", position_buckets=8)
    features = extractor(model).run(frozenset([NORMED]), build_batch())
    assert torch.equal(features[NORMED], model(**build_batch()).last_hidden_state)


FFN = {
    "bert": "output.dense",
    "roberta": "output.dense",
    "distilbert": "ffn.lin2",
    "gpt2": "mlp.c_proj",
    "llama": "mlp.down_proj",
    "glm4": "mlp.down_proj",
    "gpt_neox": "mlp.dense_4h_to_h",
    "opt": "fc2",
    "modernbert": "mlp.Wo",
}


@pytest.mark.parametrize("family", list(FFN))
@torch.no_grad()
def test_ffn_is_what_the_last_linear_map_of_the_feed_forward_block_gives(
    build_model, build_batch, family
):
    model = build_model(family)
    block = find_sites(model).blocks[1]
    seen = []
    module = block.get_submodule(FFN[family])
    handle = module.register_forward_hook(lambda m, args, output: seen.append(output))
    capture, mean = Capture("ffn", 2), Capture("ffn", 2, reduce="mean")
    features = extractor(model).run(frozenset([capture, mean]), build_batch(rows=1))
    handle.remove()
    expected = seen[0].view(1, 12, 32)
    assert torch.equal(features[capture], expected)
    torch.testing.assert_close(features[mean], expected.mean(1))


@pytest.mark.parametrize("family", list(FFN))
@torch.no_grad()
def test_neurons_are_what_that_map_receives(build_model, build_batch, family):
    model = build_model(family)
    seen = []
    module = find_sites(model).blocks[1].get_submodule(FFN[family])
    handle = module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    neurons = Capture("neurons", 2)
    features = extractor(model).run(frozenset([neurons]), build_batch(rows=2))
    handle.remove()
    assert torch.equal(features[neurons], seen[0].view(2, 12, 64))


@torch.no_grad()
def test_pooled_of_bert_is_what_its_pooler_returns(build_model, build_batch):
    model, batch = build_model("bert", "classification"), build_batch()
    features = extractor(model).run(frozenset([Capture("pooled")]), batch)
    assert torch.equal(features[Capture("pooled")], model.bert(**batch).pooler_output)


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "distilbert", "electra", "modernbert", "mobilebert"]
)
@torch.no_grad()
def test_classifier_of_pooled_gives_the_logits(build_model, build_batch, family):
    model = build_model(family, "classification")
    reader = extractor(model)
    features = reader.run(frozenset([Capture("pooled"), LOGITS]), build_batch())
    logits = reader.sites.classifier(features[Capture("pooled")])
    torch.testing.assert_close(logits, features[LOGITS])


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "opt"])
@torch.no_grad()
def test_pooled_of_a_decoder_is_that_of_the_last_token(build_model, build_batch, family, padding):
    model = build_model(family, "classification")
    reader = extractor(model)
    features = reader.run(frozenset([Capture("pooled"), LOGITS]), build_batch(padding))
    logits = reader.sites.classifier(features[Capture("pooled")])
    torch.testing.assert_close(logits, features[LOGITS])


def test_a_language_model_has_nothing_pooled(build_model, build_batch):
    with pytest.raises(MethodError, match="BertForMaskedLM has no head that classifies"):
        extractor(build_model("bert", "masked-lm")).run(
            frozenset([Capture("pooled")]), build_batch()
        )


@pytest.mark.parametrize(
    ("family", "head"), [("bert", "masked-lm"), ("gpt2", "causal-lm"), ("llama", "causal-lm")]
)
def test_logits_of_a_language_model_are_computed_when_they_are_asked_for(
    build_model, build_batch, family, head
):
    model = build_model(family, head)
    reader = extractor(model)
    calls = record_calls([reader.sites.head])
    features = reader.run(frozenset([LOGITS]), build_batch())
    stock = model(**build_batch()).logits
    # Once to see that the head is linear, not for the run, once for the stock model.
    assert len(calls) == 3
    prediction = features.prediction
    assert prediction.hidden.shape == (3, 12, 32)
    assert LOGITS not in features.tensors
    assert torch.equal(features[LOGITS], stock)
    gradient = torch.autograd.grad(features[LOGITS].square().sum(), prediction.weight)[0]
    expected = torch.autograd.grad(stock.square().sum(), prediction.weight)[0]
    torch.testing.assert_close(gradient, expected)


def test_logits_that_are_more_than_linear_are_computed_by_the_model(build_model, build_batch):
    model = build_model("llama", "causal-lm")
    stock = type(model).forward

    def capped(self, *args, **kwargs):
        output = stock(self, *args, **kwargs)
        output.logits = 5 * torch.tanh(output.logits / 5)
        return output

    model.forward = capped.__get__(model)
    features = extractor(model).run(frozenset([LOGITS]), build_batch())
    assert features.deferred is None
    assert torch.equal(features.prediction, model(**build_batch()).logits)


@torch.no_grad()
def test_teacher_computes_no_logits_that_only_go_into_a_loss(build_model, build_batch):
    model = build_model("gpt2", "causal-lm")
    reader = extractor(model)
    reader.run(frozenset([LOGITS]), build_batch())
    assert reader.run(frozenset([LOGITS]), build_batch()).deferred is not None


@torch.no_grad()
def test_attention_is_what_scores_and_probs_follow_from(build_model, build_batch):
    model = build_model("llama")
    site, scores, probs = (Capture(name, 2) for name in ("attention", "scores", "probs"))
    features = extractor(model).run(frozenset([site, scores, probs]), build_batch())
    relation = features.attention[site]
    assert relation.query.shape == (3, 4, 12, 8)
    assert relation.key.shape == (3, 2, 12, 8)
    assert torch.equal(relation.scores(), features[scores])
    assert torch.equal(relation.probs(), features[probs])
