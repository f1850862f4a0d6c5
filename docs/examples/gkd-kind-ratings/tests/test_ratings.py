import pytest
import torch
from gkd_kind_ratings import gkd_register_kinds

from gkd_core.testing import check_kind, tiny_model

(Ratings,) = gkd_register_kinds()


def test_the_prediction_is_the_expected_rating() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 1.0, 9.0]])
    assert Ratings().score(logits).tolist() == [1, 0, 2]


def test_kappa_counts_squared_errors_against_chance() -> None:
    labels, predictions = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0])
    found = Ratings().measure(torch.zeros(4, 3), predictions, labels)
    # Observed 4/4; by chance, the mean over all pairs: (0+1+4+4 + 1+0+1+1 + 4+1+0+0 + 0+1+4+4)/16.
    assert found["kappa"] == pytest.approx(1 - 1 / (26 / 16))
    assert found["mean_error"] == pytest.approx(0.5)


def test_the_most_frequent_rating_is_no_better_than_chance() -> None:
    assert Ratings().guess([0, 1, 2, 2]) == pytest.approx(0)


def test_its_models_are_classifiers() -> None:
    config = tiny_model("classification", 2, seed=0).config
    Ratings().configure(config, ("1", "2", "3"))
    assert config.id2label == {0: "1", 1: "2", 2: "3"}


def test_it_keeps_the_contract() -> None:
    texts = ["bad", "good", "a bad film", "not bad", "the best film of all", "worse than bad"]
    stars = [1, 4, 2, 3, 4, 1]
    check_kind(Ratings, [{"text": t, "label": n} for t, n in zip(texts, stars, strict=True)])
