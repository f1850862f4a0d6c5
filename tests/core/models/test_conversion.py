"""Names in a checkpoint are understood as transformers understands them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from gkd_core.errors import ConfigError
from gkd_core.models.conversion import find_weights
from gkd_core.models.stored import check_trained_head
from gkd_core.plugins import registry

CAUSAL = registry().kind("causal-lm")


@pytest.fixture
def saved(build_model, tmp_path):
    """Save a language model: `saved(family)` -> the model, its directory."""

    def _saved(family):
        model = build_model(family, "causal-lm")
        model.save_pretrained(tmp_path)
        return model, tmp_path

    return _saved


@pytest.mark.parametrize(
    ("family", "stored"),
    [
        ("gpt_neox", "embed_out.weight"),
        ("qwen3_moe", "model.layers.1.mlp.experts.3.up_proj.weight"),
    ],
)
def test_weights_are_made_of_what_is_stored(saved, family, stored):
    model, path = saved(family)
    tensors = load_file(path / "model.safetensors")
    assert stored in tensors
    assert stored not in model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = find_weights(model, shapes)
    assert found.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert found[name].shape == tuple(weight.shape)
        assert torch.equal(found[name].read(tensors.__getitem__), weight)


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_head_is_found_by_the_name_it_has_in_the_file(saved, family):
    model, path = saved(family)
    check_trained_head(str(path), model.config, CAUSAL, "teacher.model")
    tensors = load_file(path / "model.safetensors")
    body = {n: t for n, t in tensors.items() if n not in ("embed_out.weight", "lm_head.weight")}
    assert len(body) == len(tensors) - 1
    save_file(body, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"no trained causal-LM head \(lm_head\)"):
        check_trained_head(str(path), model.config, CAUSAL, "teacher.model")
