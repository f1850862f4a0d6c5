import gc
import weakref

import pytest
import torch
from transformers import AutoModelForSequenceClassification, T5Config, T5EncoderModel

from gkd_core.errors import MethodError
from gkd_core.hooks.attention import NAME
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.paths import Capture
from gkd_core.losses.relation import Relation
from gkd_core.models.sites import Sites, find_sites

ENCODERS = ["bert", "roberta", "distilbert", "electra", "modernbert", "mobilebert"]
DECODERS = ["gpt2", "llama", "qwen3", "glm", "glm4", "mistral", "qwen2", "gpt_neox", "opt"]
PADDED = [(f, "right") for f in (*ENCODERS, *DECODERS)] + [(f, "left") for f in DECODERS]
SITES = ["query", "key", "value", "scores", "probs", "context"]
EVERYTHING = frozenset(Capture(site, layer) for site in SITES for layer in (1, 2, 3))


def extractor(model):
    return Extractor(model, find_sites(model))


def eager(model):
    twin = type(model)._from_config(model.config, attn_implementation="eager").eval()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("pad", ["none", "some"])
@pytest.mark.parametrize(("family", "padding"), PADDED)
@torch.no_grad()
def test_probs_equal_eager_attentions(build_model, build_batch, family, padding, pad):
    model = build_model(family)
    batch = build_batch(padding)
    if pad == "none":
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    stock = eager(model)(**batch, output_attentions=True).attentions
    features = extractor(model).run(EVERYTHING, batch)
    real = batch["attention_mask"].bool()
    for layer in (1, 2, 3):
        probs = features[Capture("probs", layer)].transpose(1, 2)[real]
        torch.testing.assert_close(probs, stock[layer - 1].transpose(1, 2)[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "padding"), PADDED)
@torch.no_grad()
def test_captured_parts_make_up_the_attention_output(build_model, build_batch, family, padding):
    model = build_model(family)
    batch = build_batch(padding)
    features = extractor(model).run(EVERYTHING, batch)
    real = batch["attention_mask"].bool()
    for layer in (1, 2, 3):
        value = features[Capture("value", layer)]
        probs = features[Capture("probs", layer)]
        value = value.repeat_interleave(probs.shape[1] // value.shape[1], dim=1)
        context = (probs @ value).transpose(1, 2).flatten(2)
        captured = features[Capture("context", layer)]
        torch.testing.assert_close(captured[real], context[real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_query_key_value_are_the_projections_of_the_layer(build_model, build_batch):
    model = build_model("bert")
    sites = find_sites(model)
    features = Extractor(model, sites).run(
        EVERYTHING | {Capture("hidden", layer) for layer in range(4)}, build_batch()
    )
    for layer, attention in enumerate(sites.attentions, 1):
        hidden = features[Capture("hidden", layer - 1)]
        for site in ("query", "key", "value"):
            projected = getattr(attention, site)(hidden).unflatten(2, (4, 8)).transpose(1, 2)
            assert torch.equal(features[Capture(site, layer)], projected)


def test_grouped_heads_keep_their_number(build_model, build_batch):
    features = extractor(build_model("llama")).run(EVERYTHING, build_batch())
    assert features[Capture("query", 1)].shape == (3, 4, 12, 8)
    assert features[Capture("key", 1)].shape == (3, 2, 12, 8)
    assert features[Capture("scores", 1)].shape == (3, 4, 12, 12)


@torch.no_grad()
def test_sliding_window_hides_the_far_past(build_model, build_batch):
    features = extractor(build_model("mistral")).run(EVERYTHING, build_batch())
    probs = features[Capture("probs", 1)]
    visible = torch.ones(12, 12).tril() - torch.ones(12, 12).tril(-4)
    assert torch.equal((probs[0] > 0).float(), visible.expand(4, 12, 12))


def test_query_that_sees_nothing_looks_everywhere_alike():
    mask = torch.zeros(1, 1, 2, 4, dtype=torch.bool)
    mask[..., 1, :2] = True
    inputs = Relation(torch.rand(1, 2, 2, 8), torch.rand(1, 2, 4, 8), mask, False, 1.0)
    least = torch.finfo(torch.float32).min
    assert (inputs.scores()[..., 0, :] == least).all()
    assert (inputs.probs()[..., 0, :] == 0.25).all()
    assert (inputs.probs()[..., 1, 2:] == 0).all()


def test_additive_mask_equals_boolean_mask():
    query, key = torch.rand(1, 2, 3, 8), torch.rand(1, 2, 3, 8)
    mask = torch.ones(3, 3, dtype=torch.bool).tril()
    additive = torch.zeros(3, 3).masked_fill(~mask, -torch.inf)
    probs = [Relation(query, key, m, False, 1.0).probs() for m in (mask, additive)]
    causal = Relation(query, key, None, True, 1.0).probs()
    torch.testing.assert_close(probs[0], probs[1])
    torch.testing.assert_close(probs[0], causal)


@torch.no_grad()
def test_switched_attention_leaves_the_checkpoint_alone(build_model, build_batch, tmp_path):
    model = build_model("bert", "classification")
    batch = build_batch()
    before = model(**batch).logits
    extractor(model).run(EVERYTHING, batch)
    assert model.config._attn_implementation == NAME
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert loaded.config._attn_implementation == "sdpa"
    assert torch.equal(loaded(**batch).logits, before)


@torch.no_grad()
def test_attention_is_switched_when_it_is_first_read_and_given_back(build_model, build_batch):
    model = eager(build_model("llama", "causal-lm"))
    reader = extractor(model)
    reader.run(frozenset([Capture("logits"), Capture("hidden", 1)]), build_batch())
    assert model.config._attn_implementation == "eager"
    reader.run(frozenset([Capture("probs", 1)]), build_batch())
    assert model.config._attn_implementation == NAME
    reader.remove()
    assert model.config._attn_implementation == "eager"


@torch.no_grad()
def test_captured_attention_dies_with_the_features(build_model, build_batch):
    model = build_model("gpt2")
    reader = extractor(model)
    features = reader.run(EVERYTHING, build_batch())
    tensors = [weakref.ref(features[capture]) for capture in EVERYTHING]
    gc.disable()
    try:
        del features
        assert not any(tensor() is not None for tensor in tensors)
    finally:
        gc.enable()


def test_attention_of_an_unsupported_model_is_refused(build_model, build_batch):
    model = build_model("bert")
    sites = find_sites(model)
    sites.obstacle = "BertModel does not use transformers' attention"
    with pytest.raises(MethodError, match=r"probs\[1\] cannot be captured: BertModel does not"):
        Extractor(model, sites).run(frozenset([Capture("probs", 1)]), build_batch())
    assert Extractor(model, sites).run(frozenset([Capture("hidden", 1)]), build_batch())


class T5EncoderSites(Sites):
    families = ("t5",)

    def find_attentions(self):
        return [block.layer[0].SelfAttention for block in self.blocks]


@torch.no_grad()
def test_position_bias_is_part_of_the_scores(build_batch):
    torch.manual_seed(0)
    shape = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4}
    model = T5EncoderModel(T5Config(**shape, num_layers=3, is_encoder_decoder=False)).eval()
    batch = build_batch()
    stock = eager(model)(**batch, output_attentions=True).attentions
    reader = Extractor(model, find_sites(model, [T5EncoderSites]))
    features = reader.run(frozenset([Capture("probs", 2)]), batch)
    real = batch["attention_mask"].bool()
    probs = features[Capture("probs", 2)].transpose(1, 2)[real]
    torch.testing.assert_close(probs, stock[1].transpose(1, 2)[real], atol=1e-5, rtol=0)
