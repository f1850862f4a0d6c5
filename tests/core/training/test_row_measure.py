"""The main metric of some of the rows, as the bootstrap draws them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gkd_core.config.schema import TaskConfig
from gkd_core.contract.task import Split
from gkd_core.data.files import Files
from gkd_core.kinds.metrics import Metric
from gkd_core.kinds.task_kind import Evaluation
from gkd_core.plugins import registry
from gkd_core.training.row_measure import row_measure


def test_a_group_that_is_drawn_twice_counts_as_two():
    spec = SimpleNamespace(
        kind=registry().kind("classification"),
        task=Files(TaskConfig()),
        data=None,
        metric_on=lambda split: Metric("group_accuracy", True),
        is_unlabeled=lambda split: split.labels is None,
    )
    split = Split(["a", "b", "c"], labels=[0, 1, 1], group=["x", "x", "y"])
    measure = row_measure(spec, split, Evaluation({}, torch.tensor([0, 1, 0])))
    assert measure(np.arange(3)) == 0.5  # x is right, y is not
    assert measure(np.array([0, 1, 0, 1, 2])) == pytest.approx(2 / 3)
    assert row_measure(spec, Split(["a"]), Evaluation({}, torch.tensor([0]))) is None
