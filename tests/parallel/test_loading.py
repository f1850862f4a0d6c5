"""Checkpoints are read shard by shard, and give the models that reading them whole gives."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from gkd_core.errors import ConfigError
from gkd_core.models.load import load_model, load_teacher
from gkd_core.plugins import registry

KINDS = registry().kinds

CPU = torch.device("cpu")
MIB = 2**20


def reader():
    from gkd_core.parallel.loading import ShardReader

    return ShardReader(dist.group.WORLD, CPU)


def arguments(path, kind):
    return str(path), KINDS[kind], (), False, "teacher.model"


def unequal(model, reference):
    """Return the names of weights that are not this rank's shard of the reference's, bit by bit."""
    splits = model.sharding.splits if hasattr(model, "sharding") else {}
    ours, theirs = model.state_dict(), reference.state_dict()
    assert ours.keys() == theirs.keys()
    shares = {
        n: splits[n].shard(t, dist.get_rank()) if n in splits else t for n, t in theirs.items()
    }
    return [n for n, t in ours.items() if t.shape != shares[n].shape or (t != shares[n]).any()]


def buffers_differ(model, reference):
    theirs = dict(reference.named_buffers())
    return [n for n, b in model.named_buffers() if b.is_meta or (b != theirs[n]).any()]


def load_both(path, kind):
    reference = load_teacher(*arguments(path, kind))
    model = load_teacher(*arguments(path, kind), read=reader())
    frozen = not any(p.requires_grad for p in model.parameters()) and not model.training
    tokens = torch.arange(4, 24).view(2, 10)
    apart = (model(tokens).logits - reference(tokens).logits).abs().max().item()
    return unequal(model, reference), buffers_differ(model, reference), frozen, apart < 1e-5


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("bert", "masked-lm"),
        pytest.param("roberta", "masked-lm", marks=pytest.mark.exhaustive),
        pytest.param("distilbert", "masked-lm", marks=pytest.mark.exhaustive),
        ("gpt2", "causal-lm"),
        ("llama", "causal-lm"),
        ("qwen3", "causal-lm"),
        pytest.param("glm", "causal-lm", marks=pytest.mark.exhaustive),
        pytest.param("gpt_neox", "causal-lm", marks=pytest.mark.exhaustive),
        ("qwen3_moe", "causal-lm"),
    ],
)
def test_shards_of_a_teacher_are_those_of_the_whole_one(on_ranks, checkpoint, family, kind):
    for outcome in on_ranks(2, load_both, checkpoint(family, kind), kind):
        assert outcome == ([], [], True, True)


def test_more_ranks_than_key_heads_read_them_whole(on_ranks, checkpoint):
    path = checkpoint("qwen3", "causal-lm")
    assert on_ranks(4, load_both, path, "causal-lm") == [([], [], True, True)] * 4


def test_one_rank_reads_the_whole_model(on_ranks, checkpoint):
    path = checkpoint("gpt2", "causal-lm")
    assert on_ranks(1, load_both, path, "causal-lm") == [([], [], True, True)]


def test_a_checkpoint_in_several_files_is_read(on_ranks, checkpoint, tmp_path):
    source, target = checkpoint("llama", "causal-lm"), tmp_path / "several"
    KINDS["causal-lm"].auto.from_pretrained(source).save_pretrained(target, max_shard_size="20KB")
    assert len(list(target.glob("*.safetensors"))) > 2
    assert on_ranks(2, load_both, target, "causal-lm") == [([], [], True, True)] * 2


def test_a_bf16_checkpoint_becomes_fp32(on_ranks, checkpoint, tmp_path):
    source, target = checkpoint("llama", "causal-lm"), tmp_path / "bf16"
    KINDS["causal-lm"].auto.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(target)
    assert on_ranks(2, load_both, target, "causal-lm") == [([], [], True, True)] * 2


def rewritten(source, target, rename=lambda name: name, keep=lambda name: True):
    """Copy a checkpoint with other names of weights."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    renamed = {rename(name): weight for name, weight in weights.items() if keep(name)}
    save_file(renamed, target / "model.safetensors", metadata={"format": "pt"})
    return target


def load_student(path, kind, classes):
    wanted = (str(path), KINDS[kind], classes, 3, False, "student.model")
    reference = load_model(*wanted)
    found = load_model(*wanted, read=reader())
    same = found.initialized == reference.initialized and found.model.training
    return unequal(found.model, reference.model), same, found.initialized


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2"])
def test_a_head_that_is_missing_is_drawn_as_on_one_process(on_ranks, checkpoint, tmp_path, family):
    kind = "causal-lm" if family == "gpt2" else "masked-lm"
    path = checkpoint(family, kind)
    for different, same, drawn in on_ranks(2, load_student, path, "classification", ("a", "b")):
        assert not different
        assert same
        assert drawn


def test_a_vocabulary_head_that_is_missing_is_drawn_and_divided(on_ranks, checkpoint, tmp_path):
    source = checkpoint("llama", "causal-lm", tie_word_embeddings=False)
    path = rewritten(source, tmp_path / "headless", keep=lambda name: "lm_head" not in name)
    for different, same, drawn in on_ranks(2, load_student, path, "causal-lm", ()):
        assert not different
        assert same
        assert drawn == ("lm_head.weight",)


def test_names_without_prefix_and_those_of_old_are_known(on_ranks, checkpoint, tmp_path):
    def old(name):
        new = name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma")
        return new.replace("LayerNorm.bias", "LayerNorm.beta")

    path = rewritten(checkpoint("bert", "masked-lm"), tmp_path / "old", rename=old)
    assert on_ranks(2, load_both, path, "masked-lm") == [([], [], True, True)] * 2


def refuse(path, kind):
    with pytest.raises(ConfigError) as refused:
        load_teacher(*arguments(path, kind), read=reader())
    return str(refused.value)


def test_a_checkpoint_that_lacks_weights_is_refused(on_ranks, checkpoint, tmp_path):
    source = checkpoint("bert", "masked-lm")
    lacking = rewritten(
        source, tmp_path / "lacking", keep=lambda n: "layer.1.output.dense" not in n
    )
    for message in on_ranks(2, refuse, lacking, "masked-lm"):
        assert (
            "2 are missing or of another shape (bert.encoder.layer.1.output.dense.bias" in message
        )


def test_weights_of_another_shape_are_refused(on_ranks, checkpoint, tmp_path):
    path = tmp_path / "reshaped"
    shutil.copytree(checkpoint("bert", "masked-lm"), path)
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(re.sub('"vocab_size": 99', '"vocab_size": 98', text))
    for message in on_ranks(2, refuse, path, "masked-lm"):
        assert "bert.embeddings.word_embeddings.weight" in message


def test_a_teacher_without_its_head_is_refused(on_ranks, checkpoint):
    for message in on_ranks(2, refuse, checkpoint("bert", "masked-lm"), "classification"):
        assert "has 2 unnamed outputs" in message or "no trained classification head" in message


def test_a_damaged_file_is_refused(on_ranks, checkpoint, tmp_path):
    path = tmp_path / "damaged"
    shutil.copytree(checkpoint("bert", "masked-lm"), path)
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])
    for message in on_ranks(2, refuse, path, "masked-lm"):
        assert message.startswith(f"teacher.model = {str(path)!r} cannot be loaded: ")


def peak_memory(path):
    """Return how far resident memory rises while a model is loaded, and the sizes it is due to."""
    read = reader()
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = resident("VmRSS")
    model = load_teacher(*arguments(path, "causal-lm"), read=read)
    rise = resident("VmHWM") - before
    shard = sum(p.numel() * p.element_size() for p in model.parameters())
    return rise, shard


def resident(what):
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(what))
    return int(line.split()[1]) * 1024


@pytest.mark.slow
def test_peak_memory_is_the_shard_and_one_tensor(on_ranks, checkpoint):
    changes = {
        "vocab_size": 16384,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_hidden_layers": 6,
        "tie_word_embeddings": True,
    }
    path = checkpoint("llama", "causal-lm", **changes)
    total = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    largest = 16384 * 1024 * 4
    for rise, shard in on_ranks(4, peak_memory, path):
        print(f"peak {rise / MIB:.0f} MiB, shard {shard / MIB:.0f}, whole {total / MIB:.0f}")
        assert shard < total * 0.26
        assert rise <= shard + largest
        assert rise < total / 2
