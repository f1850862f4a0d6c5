"""Bootstrap intervals, McNemar's test and correlations, against scipy and known values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gkd_core.evaluation.statistics import (
    FEWEST,
    Correlation,
    bootstrap,
    mcnemar,
    paired_bootstrap,
    pearson,
    spearman,
)

VALUES = np.random.default_rng(5).normal(3, 2, size=60)


def mean(rows):
    return VALUES[rows].mean()


def test_interval_is_that_of_scipy():
    found = bootstrap(mean, len(VALUES), resamples=4000)
    theirs = stats.bootstrap(
        (VALUES,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.value == pytest.approx(VALUES.mean())
    assert found.interval.low == pytest.approx(theirs.low, abs=0.03)
    assert found.interval.high == pytest.approx(theirs.high, abs=0.03)
    assert found.n == 60


def test_bootstrap_is_the_same_again_and_another_with_another_seed():
    assert bootstrap(mean, 60) == bootstrap(mean, 60)
    assert bootstrap(mean, 60) != bootstrap(mean, 60, seed=1)


def test_pairing_removes_what_rows_have_in_common():
    better = VALUES + 0.5
    paired = paired_bootstrap(lambda rows: better[rows].mean(), mean, 60)
    assert paired.value == pytest.approx(0.5)
    assert paired.interval.high - paired.interval.low < 1e-12


def test_rows_of_a_group_are_drawn_together():
    repeated = np.repeat(VALUES[:15], 4)
    groups = np.repeat(np.arange(15), 4).tolist()
    apart = bootstrap(lambda rows: repeated[rows].mean(), 60)
    together = bootstrap(lambda rows: repeated[rows].mean(), 60, groups=groups)
    once = bootstrap(lambda rows: VALUES[:15][rows].mean(), 15)
    width = together.interval.high - together.interval.low
    assert (together.n, apart.n) == (15, 60)
    assert width == pytest.approx(once.interval.high - once.interval.low)
    assert width > 1.5 * (apart.interval.high - apart.interval.low)


def test_draws_without_a_value_do_not_count():
    found = bootstrap(lambda rows: np.nan if 0 in rows else 1.0, 3)
    assert np.isnan(found.value)
    assert (found.interval.low, found.interval.high) == (1, 1)
    assert bootstrap(lambda rows: np.nan, 3).interval is None


@pytest.mark.parametrize(
    ("rows", "groups", "said"), [(0, None, "no rows"), (3, [1, 2], "2 groups were given for 3")]
)
def test_impossible_rows_are_refused(rows, groups, said):
    with pytest.raises(ValueError, match=said):
        bootstrap(mean, rows, groups=groups)


def test_mcnemar_is_the_binomial_test_of_unequal_rows():
    first = [True] * 9 + [False] * 2 + [True] * 20
    second = [False] * 9 + [True] * 2 + [True] * 20
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second, found.n) == (9, 2, 31)
    # 2 * (C(11, 0) + C(11, 1) + C(11, 2)) / 2**11
    assert found.p == pytest.approx(2 * 67 / 2048)
    assert mcnemar(second, first).p == found.p
    assert mcnemar(first, first).p == 1
    with pytest.raises(ValueError, match="3 and 2 rows"):
        mcnemar([1, 0, 1], [1, 0])


def test_coefficients_are_those_of_scipy():
    x = np.array([1, 2, 2, 4, 5, 7, 8, 8, 9, 12.0])
    y = np.array([2, 1, 4, 3, 7, 5, 9, 9, 8, 30.0])
    assert pearson(x, y).value == pytest.approx(stats.pearsonr(x, y).statistic)
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert spearman(x, y**3).value == pytest.approx(spearman(x, y).value)
    found = spearman(x, y)
    assert found.n == 10
    assert found.interval.low < found.value < found.interval.high


def test_interval_of_a_correlation_contains_the_true_one_as_often_as_it_says():
    random, covered = np.random.default_rng(0), 0
    for trial in range(60):
        x = random.normal(size=40)
        y = 0.6 * x + 0.8 * random.normal(size=40)  # correlation 0.6
        interval = pearson(x, y, seed=trial).interval
        covered += interval.low <= 0.6 <= interval.high
    assert 50 <= covered <= 60


@pytest.mark.parametrize("correlate", [pearson, spearman])
def test_correlation_of_too_little_is_refused_with_the_reason(correlate):
    line = np.arange(FEWEST - 1.0)
    assert correlate(line, line) == Correlation(7, reason="7 points; 8 are needed")
    wide = np.arange(FEWEST + 0.0)
    assert correlate(wide, wide).value == pytest.approx(1)
    assert correlate(wide, np.ones(FEWEST)).reason == "one side does not vary"
    wide[3] = np.nan
    assert correlate(wide, np.arange(8)).n == 7
