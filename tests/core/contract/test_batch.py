import pytest
import torch

from gkd_core.contract.batch import Batch
from gkd_core.errors import MethodError

ROWS = torch.arange(2)


def test_required_labels_are_those_of_the_batch():
    labels = torch.tensor([1, 0])
    assert Batch({}, labels, ROWS).require_labels() is labels


def test_missing_labels_name_the_method_that_needs_them():
    batch = Batch({"attention_mask": torch.ones(2, 3)}, None, ROWS)
    with pytest.raises(MethodError, match="mine needs labels, and a batch has none"):
        batch.seen_by("mine").require_labels()
