"""What only a GPU can show: half precision, flash attention and the real peak of memory."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.paths import Capture
from gkd_core.models.sites import find_sites
from gkd_core.plugins import registry

KINDS = registry().kinds

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DEVICE = "cuda"
READ = frozenset(Capture(site, 2) for site in ("hidden", "query", "scores"))


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 3e-2), ("fp16", 5e-3)])
def test_half_precision_trains_as_fp32_does(still, runs, tmp_path, precision, tolerance):
    settings = ["method=kd", "task.kind=causal-lm", f"parallel.device={DEVICE}"]
    found = {}
    for name in ("fp32", precision):
        own = [*settings, f"training.precision={name}"]
        runs.train(still, tmp_path / name, "lm-decoder", own)
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        found[name] = [line["loss/total"] for line in lines if "loss/total" in line]
    assert found[precision] == pytest.approx(found["fp32"], rel=tolerance)
    assert found[precision] != found["fp32"]


@pytest.fixture
def decoder(checkpoint):
    """A decoder in bf16, and rows without padding, which leave no mask to flash attention."""
    path = checkpoint("llama", "causal-lm", num_key_value_heads=4)
    model = KINDS["causal-lm"].auto.from_pretrained(path).eval().to(DEVICE, torch.bfloat16)
    tokens = torch.arange(4, 36, device=DEVICE).view(2, 16)
    return model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _found(model, inputs, backend):
    with torch.no_grad(), sdpa_kernel(backend):
        return Extractor(model, find_sites(model)).run(READ, inputs)


def _assert_close(found, expected):
    """Compare whole tensors: single values in bf16 may differ by more between two kernels."""
    for capture in READ:
        ours, theirs = found[capture].float(), expected[capture].float()
        seen = theirs.isfinite()  # scores are -inf where attention is masked
        assert torch.equal(ours.isfinite(), seen)
        assert (ours - theirs)[seen].norm() < 0.03 * theirs[seen].norm(), capture


def test_attention_is_captured_where_only_flash_kernels_may_run(decoder):
    flash, plain = (_found(*decoder, b) for b in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH))
    _assert_close(flash, plain)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="needs flash-attn")
def test_a_model_that_came_with_flash_attention_is_read_and_gets_it_back(decoder):
    model, inputs = decoder
    expected = _found(model, inputs, SDPBackend.MATH)
    model.set_attn_implementation("flash_attention_2")
    reader = Extractor(model, find_sites(model))
    hidden = Capture("hidden", 2)
    with torch.no_grad():
        alone = reader.run(frozenset({hidden}), inputs)
        assert model.config._attn_implementation == "flash_attention_2"
        torch.testing.assert_close(alone[hidden], expected[hidden], rtol=0.05, atol=0.05)
        _assert_close(reader.run(READ, inputs), expected)
    reader.remove()
    assert model.config._attn_implementation == "flash_attention_2"


LARGE = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "vocab_size": 8000,
}


@pytest.fixture
def large(still, tmp_path):
    """A decoder of 33 M weights."""
    made = LlamaForCausalLM(LlamaConfig(**LARGE))
    for part in (made, AutoTokenizer.from_pretrained(still / "lm-decoder")):
        part.save_pretrained(tmp_path / "large")
    return tmp_path / "large"


def test_peak_memory_is_what_the_plan_says(still, gkd, runs, large, tmp_path):
    """Of models that take some hundred MiB; cuBLAS has a workspace that is in no plan."""
    settings = ["method=soft", "task.kind=causal-lm", f"parallel.device={DEVICE}"]
    settings += ["training.steps=2", "training.evaluate_every=2"]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    runs.train(still, tmp_path / "run", str(large), settings)
    measured = torch.cuda.max_memory_allocated() - before
    given = [part for setting in settings for part in ("--set", setting)]
    file = tmp_path / "run" / "rank-0.toml"
    planned = gkd("plan", "--json", file, "--teacher", large, *given)
    assert planned.returncode == 0, planned.stderr
    assert measured == pytest.approx(json.loads(planned.stdout)[0]["peak"], rel=0.15)
