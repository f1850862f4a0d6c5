"""Numbers worked out by hand for p_t = (3/4, 1/4) and p_s = (1/2, 1/2) at T = 1."""

from math import log

import pytest
import torch

from gkd_core.api import MethodError, Models
from gkd_methods_classic.distilbert import DistilBERT

KNOWN = torch.tensor([[[log(3), 0.0], [0.0, 0.0]]], dtype=torch.float64)
LEARNED = torch.zeros(1, 2, 2, dtype=torch.float64)
STATES = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]], dtype=torch.float64)
TARGETS = torch.tensor([[1, -100]])
KL = 0.75 * log(1.5) + 0.25 * log(0.5)


@pytest.fixture
def distilbert(terms):
    def _distilbert(
        logits=LEARNED, known=KNOWN, states=STATES, labels=TARGETS, mask=None, target=STATES, **more
    ):
        return terms(
            DistilBERT(DistilBERT.Config(**more)),
            {"logits": logits, "hidden[last].normed": states},
            {"logits": known, "hidden[last].normed": target},
            labels,
            mask=mask,
        )

    return _distilbert


def test_the_weights_and_the_temperature_are_the_papers(distilbert):
    found = distilbert(states=STATES.flip(1))
    # T = 2: p = softmax(ln 3 / 2, 0), against (1/2, 1/2), times T^2, at one of two positions.
    assert found["soft"].item() == pytest.approx(5 * 0.145363 / 2, abs=1e-5)
    assert found["hard"].item() == pytest.approx(2 * log(2), abs=1e-12)
    # cos of (3, 4) and (1, 0) is 3/5, at both positions.
    assert found["cosine"].item() == pytest.approx(1 - 0.6, abs=1e-12)


def test_soft_labels_count_at_all_tokens_or_only_at_the_targets(distilbert):
    options = {"temperature": 1, "alpha_ce": 1}
    assert distilbert(**options)["soft"].item() == pytest.approx(KL / 2, abs=1e-12)
    assert distilbert(**options, kl_on="targets")["soft"].item() == pytest.approx(KL, abs=1e-12)


def test_a_model_that_equals_the_teacher_is_drawn_to_the_labels_alone(distilbert):
    found = distilbert(logits=KNOWN)
    assert (found["soft"].item(), found["hard"].item()) == (0, pytest.approx(2 * log(4)))
    assert found["cosine"].item() == pytest.approx(0, abs=1e-12)


def test_the_length_of_a_state_does_not_count(distilbert):
    found = distilbert(states=7 * STATES.flip(1))
    assert found["cosine"].item() == pytest.approx(0.4, abs=1e-12)


def test_padding_adds_nothing_to_equal_states(distilbert):
    # Averaged over all 10 positions, with states of padding set to 0, this would be 0.2.
    states = torch.randn(1, 10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(10)[None] < 8
    logits, labels = torch.zeros(1, 10, 2).double(), torch.full((1, 10), -100)
    noise = torch.where(mask[..., None], states, torch.full_like(states, 5.0))
    found = distilbert(logits, logits, noise, labels, mask, target=states)
    assert found["cosine"].item() == pytest.approx(0, abs=1e-12)


def test_a_classification_has_one_prediction_a_row(distilbert):
    options = {"temperature": 1, "alpha_ce": 1}
    labels = torch.tensor([1])
    found = distilbert(LEARNED[:, 0], KNOWN[:, 0], labels=labels, mask=torch.ones(1, 2), **options)
    assert found["soft"].item() == pytest.approx(KL, abs=1e-12)
    assert found["hard"].item() == pytest.approx(2 * log(2), abs=1e-12)


def test_unlabeled_data_is_refused(distilbert):
    with pytest.raises(MethodError, match="distilbert needs labels"):
        distilbert(labels=None)


def test_models_of_different_width_are_refused(info):
    student, teacher = info("student", hidden_size=384), info("large", hidden_size=1024, heads=16)
    message = "hidden size 384 and the teacher 'large' 1024"
    with pytest.raises(MethodError, match=message):
        DistilBERT().check(Models(student, teacher))
