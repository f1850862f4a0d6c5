from math import log

import pytest
import torch

from gkd_core.api import MethodError
from gkd_methods_classic.hard import Hard

LOGITS = torch.tensor([[log(3), 0.0], [0.0, 0.0]], dtype=torch.float64)


@pytest.fixture
def hard(terms):
    return lambda logits, labels: terms(Hard(), {"logits": logits}, labels=labels)["hard"]


def test_hard_is_the_cross_entropy_of_the_classes(hard):
    # p = (3/4, 1/4) and (1/2, 1/2).
    expected = -(log(1 / 4) + log(1 / 2)) / 2
    assert hard(LOGITS, torch.tensor([1, 0])).item() == pytest.approx(expected, abs=1e-12)


def test_language_models_count_only_positions_with_a_target(hard):
    logits = LOGITS.unsqueeze(0)
    loss = hard(logits, torch.tensor([[1, -100]]))
    assert loss.item() == pytest.approx(log(4), abs=1e-12)


def test_no_target_gives_zero(hard):
    assert hard(LOGITS.unsqueeze(0), torch.tensor([[-100, -100]])).item() == 0


def test_a_regression_is_the_squared_error(hard):
    loss = hard(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 2.5]))
    assert loss.item() == pytest.approx((4 + 0.25) / 2)


def test_unlabeled_data_is_refused(hard):
    with pytest.raises(MethodError, match="hard needs labels"):
        hard(LOGITS, None)
