"""A teacher that reads the student's ids computes what it computed in its own."""

import copy

import pytest
import torch

from gkd_core.config.schema import StudentConfig
from gkd_core.models.sites import find_sites
from gkd_core.plugins import registry
from gkd_core.students.build import build_student
from gkd_core.vocabulary.weights import (
    RenumberedWeights,
    renumber,
    renumber_settings,
    token_axes,
    whole_order,
)

KINDS = registry().kinds
FAMILIES = ["bert", "roberta", "distilbert", "electra", "modernbert", "mobilebert"]
DECODERS = ["gpt2", "llama", "qwen3", "glm", "gpt_neox", "opt"]
KEPT = [0, 1, 2, 3, 4, 7, 9, 12, 13, 20, 21, 33, 40]


def kind_of(family):
    return "causal-lm" if family in DECODERS else "masked-lm"


def inputs(rows=3, length=6):
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(4, len(KEPT), (rows, length), generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def own(read):
    return {**read, "input_ids": torch.tensor(KEPT)[read["input_ids"]]}


@pytest.mark.parametrize("family", [*FAMILIES, *DECODERS])
def test_logits_are_those_of_the_own_ids(build_model, family):
    whole = build_model(family, kind_of(family)).eval()
    with torch.no_grad():
        for name, weight in whole.named_parameters():
            if name.endswith("bias"):
                weight.copy_(torch.linspace(-1, 1, weight.numel()).view_as(weight))
    made = copy.deepcopy(whole)
    renumber(made, KEPT)
    read = inputs()
    with torch.no_grad():
        found, known = made(**read).logits, whole(**own(read)).logits
    assert torch.equal(found, known[..., whole_order(KEPT, known.shape[-1])])


@pytest.mark.parametrize("family", [*FAMILIES, *DECODERS])
@pytest.mark.parametrize("init", ["spaced", "random"])
def test_a_student_has_the_rows_of_its_tokens(build_model, family, init):
    whole = build_model(family, kind_of(family)).eval()
    made = copy.deepcopy(whole)
    renumber(made, KEPT)
    spec = StudentConfig(layers=whole.config.num_hidden_layers, vocabulary=len(KEPT), init=init)
    student = build_student(spec, find_sites(made), KINDS[kind_of(family)], (), 0).model.eval()
    assert student.config.vocab_size == len(KEPT)
    assert student.get_input_embeddings().weight.shape[0] == len(KEPT)
    read = inputs()
    with torch.no_grad():
        found, known = student(**read).logits, whole(**own(read)).logits
    assert found.shape[-1] == len(KEPT)
    if init == "spaced":
        assert torch.allclose(found, known[..., KEPT], atol=1e-6)


def test_stored_weights_are_ordered_as_a_model_is(build_model):
    whole = build_model("bert", "masked-lm")
    stored = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    made = copy.deepcopy(whole)
    renumber(made, KEPT)
    read = RenumberedWeights(stored, whole, KEPT)
    assert set(read) == set(stored)
    assert len(read) == len(stored)
    for name, weight in made.state_dict().items():
        assert torch.equal(read[name], weight), name


def test_a_classifier_has_only_an_embedding_of_tokens(build_model):
    whole = build_model("bert", "classification")
    assert token_axes(whole) == {"bert.embeddings.word_embeddings.weight": 0}


def test_settings_name_tokens_by_their_new_ids(build_model):
    config = build_model("llama", "causal-lm").config
    config.eos_token_id, config.bos_token_id, config.pad_token_id = [7, 20], 9, None
    renumber_settings(config, KEPT)
    assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == ([5, 9], 6, None)


def test_a_renumbered_decoder_writes_only_tokens_that_are_kept(build_model):
    made = build_model("llama", "causal-lm").eval()
    renumber(made, KEPT)
    written = made.generate(torch.tensor([[5]]), max_new_tokens=20, do_sample=True)
    assert int(written.max()) < len(KEPT)
