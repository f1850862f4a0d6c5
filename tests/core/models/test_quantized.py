"""Teachers with quantized weights are converted once, by what their layers compute."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from gkd_core.errors import ConfigError
from gkd_core.models.quantized import checkpoint, dequantized

FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
EIGHT = {"load_in_8bit": True}


class Packed(nn.Module):
    """A layer of 4-bit numbers in an order of its own, as GPTQ and AWQ keep them."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        draw = torch.Generator().manual_seed(inputs)
        self.order = torch.randperm(inputs, generator=draw)
        self.numbers = torch.randint(16, (inputs, outputs), generator=draw)
        self.scale = torch.rand(outputs, generator=draw)
        self.bias = None

    def forward(self, values):
        weight = ((self.numbers - 8) * self.scale)[self.order]
        return values @ weight.to(values.dtype)


@pytest.fixture
def quantize(build_model, world, tmp_path, monkeypatch):
    """Save a Llama as bitsandbytes quantizes it; return its directory and the quantized model."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))

    def make(**how):
        sizes = {"hidden_size": 64, "intermediate_size": 128, "attention_bias": True}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
        build_model("llama", "causal-lm", **sizes).save_pretrained(tmp_path / "whole")
        place, config = tmp_path / "quantized", BitsAndBytesConfig(**how)
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "whole", quantization_config=config, device_map="cpu"
        )
        model.save_pretrained(place)
        AutoTokenizer.from_pretrained(world / "lm-teacher").save_pretrained(place)
        return place, AutoModelForCausalLM.from_pretrained(place, device_map="cpu")

    return make


@pytest.mark.parametrize("how", [FOUR, EIGHT], ids=["4 bits", "8 bits"])
def test_teacher_computes_what_its_quantized_layers_do(quantize, tmp_path, how):
    place, model = quantize(**how)
    found = dequantized(str(place), "teacher.model")
    made = AutoModelForCausalLM.from_pretrained(found)
    assert "quantization_config" not in json.loads((tmp_path / found / "config.json").read_text())
    assert all(weight.dtype == torch.float32 for weight in made.parameters())
    tokens = torch.arange(2, 14).reshape(2, 6)
    # In evaluation, bitsandbytes rounds the scales of 4 bits on some processors.
    expected, got = (each.train()(input_ids=tokens).logits.detach() for each in (model, made))
    bound = 1e-4 if how is FOUR else 0.02  # of 8 bits, the activations are quantized, too
    torch.testing.assert_close(got, expected, rtol=0, atol=bound * float(expected.abs().max()))
    assert dequantized(str(place), "teacher.model") == found


def test_run_learns_from_it(quantize, prepare_run):
    place, _ = quantize(**FOUR)
    run = prepare_run(
        *("method=soft", "task.kind=lm", "training.steps=1", "student.layers=1"),
        f"teacher.model={place}",
        teachers=(),
    )
    run.execute()
    assert (run.student / "model.safetensors").is_file()


def test_only_a_teacher_may_be_quantized(quantize, prepare_run):
    place, _ = quantize(**FOUR)
    with pytest.raises(ConfigError, match=r"student\.model.*only those of a teacher"):
        prepare_run("method=soft", "task.kind=lm", f"student.model={place}")


def test_weights_that_compute_something_else_are_refused(quantize, monkeypatch, tmp_path):
    place, _ = quantize(**FOUR)
    stock = checkpoint.linear_map
    monkeypatch.setattr(checkpoint, "linear_map", lambda *given: stock(*given).flip(0))
    with pytest.raises(ConfigError, match=r"the outputs of its weights in fp32 differ .* by \d+%"):
        dequantized(str(place), "teacher.model")
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_missing_weights_are_named(quantize):
    place, _ = quantize(**FOUR)
    (place / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"teacher\.model = .*quantized' cannot be read: "):
        dequantized(str(place), "teacher.model")


@pytest.mark.parametrize(
    ("method", "package"),
    [("bitsandbytes", "bitsandbytes"), ("gptq", "gptqmodel"), ("awq", "gptqmodel")],
)
def test_missing_package_is_named(tmp_path, monkeypatch, method, package):
    config = {"model_type": "llama", "quantization_config": {"quant_method": method}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"needs {package}, which is not installed"):
        dequantized(str(tmp_path), "teacher.model")


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"quantization_config": {"quant_method": "hqq"}},
        {"quantization_config": {"quant_method": "gptq"}, "auto_map": {"AutoConfig": "own.Own"}},
    ],
)
def test_other_models_are_left_as_they_are(tmp_path, table):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | table))
    assert dequantized(str(tmp_path), "teacher.model") == str(tmp_path)


def test_matrix_is_read_off_a_layer_in_chunks(monkeypatch):
    monkeypatch.setattr(checkpoint, "CHUNK", 3)
    layer = Packed(10, 4)
    found = checkpoint.linear_map(layer, torch.device("cpu"), torch.float32)
    assert found.shape == (4, 10)
    values = torch.randn(5, 10, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(values @ found.T, layer(values))
    assert torch.equal(found, ((layer.numbers - 8) * layer.scale)[layer.order].T)
