"""What is saved from shards is the whole model, and loads into any layout."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoTokenizer

from gkd_core.models.load import load_model
from gkd_core.models.save import save_model
from gkd_core.plugins import registry

KINDS = registry().kinds


def save(path, target, kind, tensor):
    from gkd_core.distributed.groups import setup, teardown
    from gkd_core.distributed.layout import Layout
    from gkd_core.parallel.loading import ShardReader
    from gkd_core.parallel.weights import whole_state

    groups = setup(Layout(dist.get_world_size(), tensor))
    read = ShardReader(groups.tensor, torch.device("cpu"))
    student = load_model(str(path), KINDS[kind], (), 0, False, "student.model", read=read).model
    weights = whole_state(student)
    if dist.get_rank() == 0:
        save_model(student, AutoTokenizer.from_pretrained(path), target, weights)
    teardown()
    return len(weights)


def equal(path, target):
    """Tell whether two checkpoints hold the same names and bits."""
    one, other = (load_file(folder / "model.safetensors") for folder in (path, target))
    assert one.keys() == other.keys()
    return all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("bert", "masked-lm"),
        pytest.param("roberta", "masked-lm", marks=pytest.mark.exhaustive),
        pytest.param("distilbert", "masked-lm", marks=pytest.mark.exhaustive),
        ("gpt2", "causal-lm"),
        pytest.param("llama", "causal-lm", marks=pytest.mark.exhaustive),
        pytest.param("qwen3", "causal-lm", marks=pytest.mark.exhaustive),
        pytest.param("glm", "causal-lm", marks=pytest.mark.exhaustive),
    ],
)
def test_a_saved_model_is_whole_and_unchanged(on_ranks, checkpoint, tmp_path, family, kind):
    path, target = checkpoint(family, kind), tmp_path / "saved"
    first, second = on_ranks(2, save, path, target, kind, 2)
    assert first
    assert not second
    assert equal(path, target)
    described, before = (
        json.loads((folder / "config.json").read_text()) for folder in (target, path)
    )
    assert described == before
    tokens = torch.arange(4, 24).view(2, 10)
    models = [KINDS[kind].auto.from_pretrained(folder).eval() for folder in (path, target)]
    assert (models[0](tokens).logits == models[1](tokens).logits).all()
    assert (target / "tokenizer.json").is_file()


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", [pytest.param("llama", marks=pytest.mark.exhaustive), "gpt2"])
def test_a_model_moves_through_all_layouts_unchanged(on_ranks, checkpoint, tmp_path, family):
    path = checkpoint(family, "causal-lm", tie_word_embeddings=False)
    before = path
    for ranks, tensor in [(4, 4), (2, 1), (4, 2), (1, 1)]:
        target = tmp_path / f"{ranks}-{tensor}"
        on_ranks(ranks, save, before, target, "causal-lm", tensor)
        assert equal(path, target)
        before = target


def keep_and_take_back(path, kept):
    from gkd_core.parallel.sharding import shard_model
    from gkd_core.training.checkpoint import load_weights, save_weights

    auto = KINDS["causal-lm"].auto
    model = shard_model(auto.from_pretrained(path), dist.group.WORLD)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_weights(model, kept)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    load_weights(model, kept)
    return all((weight == before[name]).all() for name, weight in model.state_dict().items())


def test_a_checkpoint_of_a_divided_student_is_whole_and_taken_back(on_ranks, checkpoint, tmp_path):
    path = checkpoint("gpt2", "causal-lm", tie_word_embeddings=False)
    kept = tmp_path / "student.safetensors"
    assert on_ranks(2, keep_and_take_back, path, kept) == [True, True]
    whole = load_file(path / "model.safetensors")
    written = load_file(kept)
    assert whole.keys() == written.keys()
    assert all((whole[name] == written[name]).all() for name in whole)
