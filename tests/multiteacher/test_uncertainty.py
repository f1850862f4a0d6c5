"""`uncertainty`: who teaches a sample follows from the student's entropy."""

import math

import pytest
import torch

from gkd_core.errors import MethodError
from gkd_core.hooks.paths import LOGITS as LOGITS_READ
from gkd_core.hooks.paths import Capture
from gkd_methods_multiteacher.uncertainty import Uncertainty

LOGITS = torch.tensor([[0, 0], [math.log(3), 0], [5, 0], [1, 0]], dtype=torch.float64)
U = [1, 0.811278, 0.057967, 0.839942]
NOTHING = {"logits": LOGITS}
THREE = torch.tensor([[5, 3, 2], [4.5, 4.5, 1], [6, 2, 2], [1, 1, 1]], dtype=torch.float64).log()
MEASURES = {
    "entropy": [0.937230, 0.863740, 0.864974, 1],
    "margin": [0.8, 1, 0.6, 1],
    "confidence": [0.75, 0.825, 0.6, 1],
}
"""U of `THREE`, by hand."""
HIDDEN = Capture("hidden", 1)


def _emphasis(found, reads):
    return found.combiner.term_scale(reads, found.student, found.batch, found.step())


@pytest.fixture
def weights(case):
    """Weights of teachers of so many layers."""

    def _weights(adoption, *layers, logits=LOGITS, **options):
        teachers = [{"logits": logits}] * len(layers)
        options |= {"adoption": adoption}
        found = case(Uncertainty, options, {"logits": logits}, teachers, None, layers)
        return torch.stack(found.weights())

    return _weights


def test_uncertain_half_learns_from_the_small_teacher(weights):
    large, small = weights("hard", 12, 4)
    assert small.tolist() == [1, 0, 0, 1]
    assert large.tolist() == [0, 1, 1, 0]


def test_soft_weights_are_the_uncertainty_and_what_is_left(weights):
    large, small = weights("soft", 12, 4)
    assert small.tolist() == pytest.approx(U, abs=1e-6)
    assert large.tolist() == pytest.approx([1 - u for u in U], abs=1e-6)


def test_teachers_are_alike_without_adoption(weights):
    assert weights("none", 12, 4).tolist() == [[0.5] * 4] * 2


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_of_uncertainty(weights, measure):
    _, small = weights("soft", 12, 4, logits=THREE, measure=measure)
    assert small.tolist() == pytest.approx(MEASURES[measure], abs=1e-6)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [("entropy", [2, 0, 0, 2]), ("margin", [0, 2, 0, 2]), ("confidence", [0, 2, 0, 2])],
)
def test_only_the_most_uncertain_share_learns_and_is_averaged(weights, measure, expected):
    (only,) = weights("hard", 12, logits=THREE, share=0.5, measure=measure)
    assert only.tolist() == expected


def test_share_is_rounded_down_but_leaves_a_sample(weights):
    taught = [weights("none", 12, share=share)[0].count_nonzero() for share in (0.1, 0.5, 0.74, 1)]
    assert taught == [1, 2, 2, 4]


def test_adoption_divides_what_is_selected(weights):
    large, small = weights("hard", 12, 4, share=0.5)
    assert small.tolist() == [2, 0, 0, 0]
    assert large.tolist() == [0, 0, 0, 2]


def test_adjusted_supervision_weighs_predictions_against_features(case):
    kinds = {"prediction": [LOGITS_READ, HIDDEN], "features": [HIDDEN]}
    found = {
        supervision: {
            name: _emphasis(case(Uncertainty, {"supervision": supervision}, NOTHING, [{}]), reads)
            for name, reads in kinds.items()
        }
        for supervision in ("fixed", "adjusted")
    }
    assert found["fixed"] == {"prediction": 1, "features": 1}
    assert found["adjusted"]["features"].tolist() == pytest.approx(U, abs=1e-6)
    assert found["adjusted"]["prediction"].tolist() == pytest.approx([1 - u for u in U], abs=1e-6)


@pytest.mark.parametrize("adoption", ["hard", "soft", "none"])
@pytest.mark.parametrize("layers", [(12,), (12, 4), (4, 12), (6, 12, 4), (3, 4, 5, 6)])
def test_weights_of_a_sample_add_up_to_1(weights, adoption, layers):
    found = weights(adoption, *layers)
    # Of 4 samples, 3 teachers have 1, 1 and 2; each part counts a third.
    uneven = adoption == "hard" and len(layers) == 3
    expected = [4 / 3, 2 / 3, 2 / 3, 4 / 3] if uneven else [1] * 4
    assert found.sum(0).tolist() == pytest.approx(expected)
    assert (found >= 0).all()


def test_three_teachers_take_a_third_each_by_size_not_by_order(weights):
    logits = torch.stack([torch.arange(6.0), torch.zeros(6)], dim=1).double()
    medium, large, small = weights("hard", 6, 12, 4, logits=logits)
    assert small.nonzero().flatten().tolist() == [0, 1]
    assert medium.nonzero().flatten().tolist() == [2, 3]
    assert large.nonzero().flatten().tolist() == [4, 5]


def test_the_larger_teacher_has_the_sample_in_the_middle_and_the_parts_count_alike(weights):
    large, small = weights("hard", 12, 4, logits=LOGITS[:3])
    assert small.tolist() == [1.5, 0, 0]
    assert large.tolist() == [0, 0.75, 0.75]


def test_a_single_sample_learns_from_the_largest_teacher(weights):
    large, small = weights("hard", 12, 4, logits=LOGITS[:1])
    assert (large.tolist(), small.tolist()) == ([1], [0])


@pytest.mark.parametrize("share", [1, 0.5])
@pytest.mark.parametrize("adoption", ["hard", "soft"])
def test_order_of_the_samples_does_not_matter(weights, adoption, share):
    order = torch.tensor([2, 0, 3, 1])
    moved = weights(adoption, 12, 4, logits=LOGITS[order], share=share)
    assert torch.equal(moved, weights(adoption, 12, 4, share=share)[:, order])


def test_regression_is_refused(case):
    one = {"logits": torch.zeros(2, 1)}
    with pytest.raises(MethodError, match="a regression does not have"):
        case(Uncertainty, {}, one, [one, one]).combiner.check()


def test_measures_of_classes_are_refused_for_words(case):
    words = {"logits": torch.zeros(2, 100)}
    with pytest.raises(MethodError, match="needs classes, which a language model does not have"):
        case(Uncertainty, {"measure": "margin"}, words, [words, words]).combiner.check()
