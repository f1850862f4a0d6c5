"""`tmkd`: a head for each teacher, whose average is the student's own."""

import pytest
import torch

from gkd_core.errors import MethodError
from gkd_methods_multiteacher.tmkd import TMKD


@pytest.fixture
def heads(case):
    """A case whose heads differ, and what they are computed from."""
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    own = torch.nn.Linear(3, 2).double()
    student = {"logits": own(pooled), "pooled": pooled}
    found = case(TMKD, {}, student, [{"logits": torch.zeros(4, 2)}] * 3)
    return found, own, pooled


def _differ(found):
    for number, head in enumerate(found.combiner.modules["heads"]):
        torch.nn.init.constant_(head.weight, 0.3 * number)
        torch.nn.init.constant_(head.bias, number**2)


def _logits(found):
    return [found.combiner.logits(number, found.student) for number in range(3)]


def test_all_heads_start_as_the_students_own(heads):
    found, own, pooled = heads
    assert all(torch.equal(logits, own(pooled)) for logits in _logits(found))


def test_average_of_the_heads_is_the_students_own(heads):
    found, own, pooled = heads
    _differ(found)
    logits = _logits(found)
    assert not torch.allclose(logits[0], logits[1])
    torch.testing.assert_close(torch.stack(logits).mean(0), own(pooled))


def test_a_head_is_linear_in_what_the_classifier_reads(heads):
    """So the average of the predictions is the prediction of the average of the weights."""
    found, own, pooled = heads
    _differ(found)
    more = list(found.combiner.modules["heads"])
    mean = sum(head.weight for head in more) / 3
    shift = sum(head.bias for head in more) / 3
    for head, logits in zip(more, _logits(found), strict=True):
        weight, bias = own.weight + head.weight - mean, own.bias + head.bias - shift
        torch.testing.assert_close(logits, torch.nn.functional.linear(pooled, weight, bias))


def test_heads_share_the_loss_evenly(heads):
    assert heads[0].weights() == [1 / 3] * 3


def test_language_model_is_refused(case):
    wide = {"logits": torch.zeros(2, 100), "pooled": torch.zeros(2, 3)}
    with pytest.raises(MethodError, match="which a language model does not have"):
        case(TMKD, {}, wide, [{"logits": wide["logits"]}] * 2).combiner.check()
