"""Rows give the same values alone and in a batch, whichever side and token it is padded with."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.padding import follow_mask, positions_of
from gkd_core.hooks.paths import LOGITS, POOLED, Capture
from gkd_core.models.sites import find_sites

END, PAD = 3, 1
TEXTS = ([5, 6, 7, 8, 9, 10], [11, 12], [13, 14, END], [15, END, 16, 17])
"""Two of the texts hold the end token, with which some models pad."""

POSITIONED = ["gpt2", "opt", "llama", "gpt_neox"]
UNNUMBERED = ["bloom"]
OWN = {"roberta": {"is_decoder": True}}
"""Families whose positions are counted from the padding token."""


def padded(side, token):
    width = max(map(len, TEXTS))
    ids, mask = torch.full((len(TEXTS), width), token), torch.zeros(len(TEXTS), width).long()
    for row, text in enumerate(TEXTS):
        place = slice(width - len(text), width) if side == "left" else slice(len(text))
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask}


def alone(model, read):
    with torch.no_grad():
        return [read(model, torch.tensor([text])) for text in TEXTS]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", POSITIONED + UNNUMBERED)
@pytest.mark.parametrize(
    ("known", "token"), [(None, END), (END, PAD), (PAD, PAD), (-1, PAD)], ids=str
)
def test_a_decoder_classifies_padded_rows_as_each_text_alone(
    build_model, family, side, known, token
):
    model = build_model(family, "classification", num_labels=2, pad_token_id=known)
    expected = torch.cat(alone(model, lambda model, ids: model(input_ids=ids).logits))
    if known == -1:  # stands for no token, as in some published models
        model.config.pad_token_id = None
        expected = torch.cat(alone(model, lambda model, ids: model(input_ids=ids).logits))
        model.config.pad_token_id = -1
    follow_mask(model, side == "left", reads_rows=True)
    found = model(**padded(side, token)).logits
    torch.testing.assert_close(found, expected)
    extractor = Extractor(model, find_sites(model))
    features = extractor.run(frozenset({LOGITS, POOLED}), padded(side, token))
    torch.testing.assert_close(features.tensors[LOGITS], expected)
    torch.testing.assert_close(features.head(features.tensors[POOLED]), expected)


@pytest.mark.parametrize("family", POSITIONED + UNNUMBERED + list(OWN))
def test_hidden_states_of_left_padded_rows_are_those_of_each_text_alone(build_model, family):
    model = build_model(family, "causal-lm", **OWN.get(family, {}))
    last = alone(model, lambda model, ids: model.base_model(input_ids=ids).last_hidden_state[0])
    follow_mask(model, pads_left=True, reads_rows=False)
    inputs = padded("left", PAD)
    layers = model.config.num_hidden_layers
    capture = Capture("hidden", layers, normed=True)
    features = Extractor(model, find_sites(model)).run(frozenset({capture}), inputs)
    hidden = features.tensors[capture]
    for row, (own, expected) in enumerate(zip(inputs["attention_mask"].bool(), last, strict=True)):
        torch.testing.assert_close(hidden[row][own], expected)


def test_training_on_the_right_gives_the_same_gradients_to_the_last_bit(build_model):
    gradients = []
    for follows in (False, True):
        model = build_model("gpt2", "classification", num_labels=2, pad_token_id=PAD)
        if follows:
            follow_mask(model, pads_left=False, reads_rows=True)
        model(**padded("right", PAD)).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(*both) for both in zip(*gradients, strict=True))


def test_given_positions_stay_and_a_second_call_changes_nothing(build_model):
    model = build_model("gpt2", "causal-lm")
    inputs = padded("left", PAD)
    own = {"position_ids": torch.arange(6).expand(4, 6)}
    expected = model(**inputs, **own).logits
    for _ in range(2):
        follow_mask(model, pads_left=True, reads_rows=False)
    assert torch.equal(model(**inputs, **own).logits, expected)
    assert len(model.base_model._forward_pre_hooks) == 1


def test_positions_are_counted_from_the_first_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert positions_of(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]
    assert positions_of(mask, first=2).tolist() == [[2, 2, 2, 3], [2, 3, 4, 4]]


@pytest.mark.parametrize("pooling", ["late", "mean", "bos"])
def test_a_mean_over_logits_is_not_taken_for_those_of_the_last_token(pooling):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    tokens = {"vocab_size": 100, "pad_token_id": PAD, "mask_token_id": 4}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model("eurobert", **shape, **tokens, classifier_pooling=pooling)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    expected = torch.cat(alone(model, lambda model, ids: model(input_ids=ids).logits))
    follow_mask(model, False, reads_rows=True)
    with torch.no_grad():
        torch.testing.assert_close(model(**padded("right", PAD)).logits, expected)
