import pytest
from transformers import AlbertConfig, AlbertModel, AutoConfig, AutoModel, T5Config, T5Model

from gkd_core.errors import MethodError, PluginError
from gkd_core.models.sites import Sites, find_sites

ENCODERS = ["bert", "roberta", "distilbert", "electra", "modernbert", "mobilebert"]
DECODERS = ["gpt2", "llama", "qwen3", "glm", "glm4", "mistral", "qwen2", "gpt_neox", "opt"]
DECODERS += ["gemma3_text", "qwen3_moe"]
MODELS = [(f, h) for f in ENCODERS for h in ("base", "classification", "masked-lm")] + [
    (f, h) for f in DECODERS for h in ("base", "classification", "causal-lm")
]
PRE_NORM = {*DECODERS, "modernbert"}


@pytest.mark.parametrize(("family", "head"), MODELS)
def test_sites_are_found_in_every_family_under_every_head(build_model, family, head):
    model = build_model(family, head)
    sites = find_sites(model)
    assert len(sites.blocks) == len(sites.attentions) == 3
    for block, attention in zip(sites.blocks, sites.attentions, strict=True):
        assert any(module is attention for module in block.modules())
    assert sites.causal == (family in DECODERS)
    assert sites.obstacle is None
    assert (sites.final_norm is not None) == (family in PRE_NORM)


def test_blocks_are_in_the_order_of_the_forward_pass(build_model, build_batch):
    model = build_model("bert")
    sites = find_sites(model)
    seen = []
    for block in sites.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(module))
    model(**build_batch())
    assert seen == list(sites.blocks)


@pytest.mark.parametrize(("family", "causal"), [("deberta-v2", False), ("bloom", True)])
def test_models_that_name_no_blocks_have_hidden_states_only(build_model, family, causal):
    sites = find_sites(build_model(family))
    assert len(sites.blocks) == 3
    assert sites.causal == causal
    assert "does not name the self-attention module" in sites.obstacle


def test_norm_of_relative_positions_is_not_the_final_one(build_model):
    assert find_sites(build_model("deberta-v2", norm_rel_ebd="layer_norm")).final_norm is None


def test_attention_in_both_directions_makes_a_decoder_an_encoder(build_model):
    assert find_sites(build_model("gemma3_text")).causal
    assert not find_sites(build_model("gemma3_text", use_bidirectional_attention=True)).causal


def test_blocks_with_experts_have_no_single_feed_forward_part(build_model):
    """The output projection of their attention may have the shape of such a part."""
    sites = find_sites(build_model("qwen3_moe", head_dim=16))
    assert sites.attentions
    assert not sites.ffns


def test_encoder_used_as_decoder_is_causal(build_model):
    assert find_sites(build_model("bert", "causal-lm", is_decoder=True)).causal


def tiny_albert():
    return AlbertModel(
        AlbertConfig(
            vocab_size=100,
            hidden_size=32,
            embedding_size=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
        )
    )


class AlbertSites(Sites):
    families = ("albert",)

    def find_blocks(self):
        return super().find_blocks() * self.model.config.num_hidden_layers


def test_block_count_that_differs_from_the_configuration_is_refused():
    with pytest.raises(MethodError, match="counts 3 blocks, but 1 were found") as error:
        find_sites(tiny_albert())
    assert "'albert'" in str(error.value)
    assert "gkd_register_sites" in str(error.value)


def test_layers_that_share_a_block_are_refused():
    with pytest.raises(MethodError, match="share one block"):
        find_sites(tiny_albert(), [AlbertSites])


class BertSites(Sites):
    families = ("bert",)

    def find_blocks(self):
        return self.model.base_model.encoder.layer


def test_adapter_of_a_plugin_is_used_for_its_family(build_model):
    assert type(find_sites(build_model("bert"), [AlbertSites, BertSites])) is BertSites
    assert type(find_sites(build_model("roberta"), [AlbertSites, BertSites])) is Sites


def test_two_adapters_for_one_family_are_refused(build_model):
    class OtherSites(BertSites):
        pass

    with pytest.raises(PluginError, match=r"BertSites and .*OtherSites"):
        find_sites(build_model("bert"), [BertSites, OtherSites])


def test_encoder_decoder_is_refused():
    model = T5Model(
        T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )
    with pytest.raises(MethodError, match="encoder-decoder"):
        find_sites(model)


def test_model_without_a_list_of_blocks_is_refused(build_model):
    model = build_model("deberta-v2")
    model.config.num_hidden_layers = 5
    with pytest.raises(MethodError, match="counts 5 blocks, but 0 were found"):
        find_sites(model)


def test_causal_model_used_in_both_directions_is_not_causal(build_model):
    assert not find_sites(build_model("llama", is_causal=False)).causal


def test_model_without_sdpa_says_so():
    config = AutoConfig.for_model(
        "gemma2",
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
    )
    sites = find_sites(AutoModel.from_config(config))
    assert "scaled-dot-product" in sites.obstacle
