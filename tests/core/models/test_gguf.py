"""Teachers in GGUF files are converted once, and are then models like any other."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkd_core import digest
from gkd_core.data.cache import cache_dir
from gkd_core.errors import ConfigError
from gkd_core.models.quantized import dequantized

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def _named(name):
    """Return llama.cpp's name for a weight of a Llama."""
    if name in OUTER:
        return OUTER[name]
    _, _, block, *inner, kind = name.split(".")
    return f"blk.{block}.{NAMES['.'.join(inner)]}.{kind}"


def _write(model, file, tokens):
    """Write a Llama in 8 bits, with a tokenizer of single characters."""
    gguf = pytest.importorskip("gguf")
    writer, config = gguf.GGUFWriter(file, "llama"), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, weight in model.state_dict().items():
        value, heads = weight, config.num_attention_heads
        if "q_proj" in name or "k_proj" in name:  # llama.cpp has other pairs in a rotation
            value = value.view(heads, 2, -1, value.shape[1]).transpose(1, 2).reshape(value.shape)
        data = value.contiguous().numpy()
        if data.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(_named(name), gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_named(name), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def file(build_model, tmp_path, monkeypatch):
    """A GGUF file, and the model that it was made from."""
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    letters = [chr(97 + number) for number in range(26)]
    words = ["<s>", "<|endoftext|>", *letters, "ab", "\u0120", *(f"w{n}" for n in range(70))]
    sizes = {"vocab_size": len(words), "num_key_value_heads": 4, "tie_word_embeddings": False}
    model = build_model("llama", "causal-lm", **sizes)
    _write(model, tmp_path / "tiny.gguf", words)
    return tmp_path / "tiny.gguf", model


def test_file_is_converted_once_and_computes_as_the_model_it_was_made_from(file):
    path, model = file
    place = dequantized(str(path), "teacher.model")
    assert place.startswith(str(cache_dir() / "dequantized"))
    found = AutoModelForCausalLM.from_pretrained(place).eval()
    assert not hasattr(found.config, "quantization_config")
    assert all(weight.dtype == torch.float32 for weight in found.parameters())
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, rtol=0, atol=0.01)
    tokens = torch.arange(2, 14).reshape(2, 6)
    expected, got = (m(input_ids=tokens).logits for m in (model, found))
    torch.testing.assert_close(got, expected, rtol=0, atol=0.2)
    assert AutoTokenizer.from_pretrained(place)("ab")["input_ids"][-1] == 28
    stamp = (cache_dir() / "dequantized").stat().st_mtime_ns
    copied = path.with_name("other.gguf")
    copied.write_bytes(path.read_bytes())
    assert dequantized(str(copied), "teacher.model") == place
    assert (cache_dir() / "dequantized").stat().st_mtime_ns == stamp


def test_file_is_read_again_only_if_it_has_changed(file, monkeypatch):
    path, _ = file
    place, hashed = dequantized(str(path), "teacher.model"), []
    stock = digest.of_each_named
    monkeypatch.setattr(digest, "of_each_named", lambda files: hashed.append(1) or stock(files))
    assert dequantized(str(path), "teacher.model") == place
    assert not hashed
    os.utime(path, (1, 1))
    assert dequantized(str(path), "teacher.model") == place
    assert hashed == [1]


def test_run_learns_from_it(file, prepare_run):
    path, _ = file
    run = prepare_run(
        *("method=soft", "task.kind=lm", "training.steps=2", "student.layers=1"),
        f"teacher.model={path}",
        teachers=(),
    )
    run.execute()
    assert run.last.teachers[0].model.startswith(str(cache_dir()))
    assert (run.student / "model.safetensors").is_file()


def test_damaged_file_and_file_of_a_student_are_refused(tmp_path, prepare_run, monkeypatch):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ConfigError, match="only a teacher may be a GGUF file"):
        prepare_run("method=soft", f"student.model={tmp_path / 'bad.gguf'}")
    pytest.importorskip("gguf")
    with pytest.raises(ConfigError, match=r"bad\.gguf' cannot be read"):
        prepare_run("method=soft", f"teacher.model={tmp_path / 'bad.gguf'}", teachers=())
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    stock = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "gguf" else stock(n))
    with pytest.raises(ConfigError, match=r"teacher\.model.*Install gkd-core\[gguf\]"):
        dequantized(str(tmp_path / "some.gguf"), "teacher.model")
    assert dequantized("org/name", "teacher.model") == "org/name"
