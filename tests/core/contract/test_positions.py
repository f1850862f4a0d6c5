"""The longest sequence that a model reads, against what its position table does."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, RobertaConfig

from gkd_core.contract.model_info import ModelInfo
from gkd_core.contract.positions import NO_LIMIT, NUMBERED_AFTER_PADDING, longest_sequence

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 20,
    "pad_token_id": 3,
}
OWN = {
    "esm": {"position_embedding_type": "absolute"},
    "layoutlmv3": {"coordinate_size": 3, "shape_size": 2},
    "lilt": {"hidden_size": 24},
    "longformer": {"attention_window": 4},
    "mpnet": {"pad_token_id": 1},  # the only one that it can have
    "xmod": {"default_language": "en_XX"},
}
OFTEN = {"camembert", "mpnet", "roberta", "xlm-roberta"}


class Derived(RobertaConfig):
    """A configuration that comes with a checkpoint."""

    model_type = "derived"


def family(name):
    often = name in OFTEN
    return pytest.param(name, marks=() if often else pytest.mark.exhaustive)


@pytest.mark.parametrize("name", [family(name) for name in sorted(NUMBERED_AFTER_PADDING)])
def test_positions_after_the_padding_token_leave_fewer(name):
    config = AutoConfig.for_model(name, **SHAPE | OWN.get(name, {}))
    longest = longest_sequence(config)
    assert longest == ModelInfo.read("teacher", config, 2).max_length == 19 - config.pad_token_id
    model = AutoModel.from_config(config).eval()
    ids = torch.full((1, longest + 1), 7)
    model(input_ids=ids[:, 1:], attention_mask=torch.ones_like(ids[:, 1:]))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize("name", ["bert", "gpt2", "opt", "distilbert"])
def test_other_positions_are_all_for_tokens(name):
    config = AutoConfig.for_model(name, **SHAPE)
    assert longest_sequence(config) == 20
    ids = torch.full((1, 20), 7)
    AutoModel.from_config(config).eval()(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_a_derived_configuration_counts_like_its_base():
    assert longest_sequence(Derived(**SHAPE)) == 16


@pytest.mark.parametrize("said", [-1, 0])
def test_no_number_of_positions_is_no_limit(said):
    config = AutoConfig.for_model("bert", **SHAPE)
    config.max_position_embeddings = said
    assert longest_sequence(config) == NO_LIMIT
    assert longest_sequence(AutoConfig.for_model("xlnet")) == NO_LIMIT
    assert longest_sequence(AutoConfig.for_model("bloom")) == NO_LIMIT
