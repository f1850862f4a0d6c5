"""What `gkd eval` says of two models, in lines."""

import pytest

from gkd_core.analysis.findings import _pair_lines
from gkd_core.evaluation.pairs import ModelPair
from gkd_core.evaluation.statistics import mcnemar
from gkd_core.plugins import registry


@pytest.mark.parametrize(
    ("own", "other", "said"),
    [
        # The binomial test of 0 among 5, 2 / 2^5, and of 1 among 2.
        ([0] * 5, [1] * 5, "p = 0.0625; only small is right on 0 rows, only large on 5 rows"),
        ([1, 0, 1], [0, 1, 1], "p = 1; only small is right on 1 row, only large on 1 row"),
    ],
)
def test_mcnemars_test_is_told_in_a_line(own, other, said):
    test = mcnemar(own, other)
    pair = ModelPair("small", "large", len(own), "accuracy", None, None, None, {}, test)
    kind = registry().kind("classification")
    assert dict(_pair_lines(pair, kind)) == {"McNemar's test": said}
