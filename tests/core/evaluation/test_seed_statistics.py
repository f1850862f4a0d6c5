"""Differences over seeds and rows: known winners and ties, and how often nothing is called real."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gkd_core.evaluation.seed_statistics import (
    SeedPair,
    SeedPrior,
    drawn_metric,
    holm,
    mean_metric,
    seed_difference,
    seed_prior,
    wilcoxon,
)


def pair(seed, first, second, units=None):
    units = range(len(first)) if units is None else units
    return SeedPair(seed, list(units), mean_metric(first), mean_metric(second))


def pairs(differences, first_seed=1):
    """Return a pair per row of `[seeds, rows]` differences, of which the second model is all 0."""
    return [
        pair(first_seed + place, each, np.zeros(len(each)))
        for place, each in enumerate(differences)
    ]


def noise(random, seeds, rows, *, of_seeds, of_rows, of_both):
    """Return differences without any effect, `[seeds, rows]`."""
    return (
        random.normal(0, of_seeds, (seeds, 1))
        + random.normal(0, of_rows, (1, rows))
        + random.normal(0, of_both, (seeds, rows))
    )


def test_difference_is_the_mean_over_tasks_settings_and_seeds():
    random = np.random.default_rng(0)
    a, b, c = (random.normal(size=(3, 20)) for _ in range(3))
    found = seed_difference({"one": [pairs(a), pairs(b)], "two": [pairs(c)]}, resamples=50)
    assert found.value == pytest.approx(a.mean() / 4 + b.mean() / 4 + c.mean() / 2)
    expected = (a + b).mean(1) / 4 + c.mean(1) / 2
    assert list(found.by_seed) == [1, 2, 3]
    assert list(found.by_seed.values()) == pytest.approx(expected)
    assert found.seeds == 3


def test_one_seed_has_the_interval_of_a_bootstrap_over_rows():
    values = np.random.default_rng(1).normal(0.2, 1, size=(1, 400))
    found = seed_difference({"task": [pairs(values)]}, resamples=4000)
    half = 1.96 * values.std() / 20
    assert found.interval.low == pytest.approx(values.mean() - half, abs=0.005)
    assert found.interval.high == pytest.approx(values.mean() + half, abs=0.005)
    assert found.p == pytest.approx(2 * stats.norm.sf(values.mean() / values.std() * 20), rel=0.3)


def test_seeds_alone_give_the_t_test():
    values = np.repeat([[0.1], [0.3], [0.25]], 50, axis=1)
    found = seed_difference({"task": [pairs(values)]}, resamples=50)
    theirs = stats.ttest_1samp([0.1, 0.3, 0.25], 0)
    assert found.p == pytest.approx(theirs.pvalue, rel=0.02)
    interval = theirs.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(interval), abs=0.01)


def test_groups_of_rows_are_drawn_together():
    values = np.repeat(np.random.default_rng(2).normal(size=(1, 30)), 4, axis=1)
    alone = seed_difference({"task": [pairs(values)]})
    units = np.repeat(range(30), 4).tolist()
    grouped = seed_difference({"task": [[pair(1, values[0], values[0] * 0, units)]]})
    width = [found.interval.high - found.interval.low for found in (alone, grouped)]
    assert width[1] == pytest.approx(2 * width[0], rel=0.1)


def test_a_metric_of_all_rows_is_computed_anew_for_each_draw():
    values = np.random.default_rng(3).normal(size=200)
    zero = mean_metric(np.zeros(200))
    metrics = mean_metric(values), drawn_metric(lambda rows: values[rows].mean())
    found = [
        seed_difference({"task": [[SeedPair(1, range(200), metric, zero)]]}, resamples=100)
        for metric in metrics
    ]
    assert found[0].value == pytest.approx(found[1].value)
    assert found[0].p == pytest.approx(found[1].p)


def test_seeds_with_other_rows_count_as_more_rows():
    values = np.random.default_rng(4).normal(size=(12, 30))
    found = seed_difference({"task": [pairs(values)]})
    apart = [pair(s, values[s], values[s] * 0, range(30 * s, 30 * s + 30)) for s in range(12)]
    nested = seed_difference({"task": [apart]})
    assert nested.value == pytest.approx(found.value)
    assert nested.interval.high - nested.interval.low < 6 * values.std() / np.sqrt(360)


def test_few_rows_have_neither_interval_nor_p_value():
    found = seed_difference({"task": [pairs(np.ones((3, 7)))]})
    assert (found.value, found.interval, found.p) == (1.0, None, None)
    with pytest.raises(ValueError, match="no pairs"):
        seed_difference({})


@pytest.mark.parametrize(
    ("of_seeds", "of_rows", "of_both"),
    [(0, 0.3, 0.3), (0, 0, 0.4), (0.02, 0.3, 0.3), (0.1, 0.1, 0.1)],
    ids=["rows", "chance", "both", "seeds"],
)
def test_without_an_effect_false_winners_stay_at_the_nominal_rate(of_seeds, of_rows, of_both):
    random = np.random.default_rng(5)
    noises = {"of_seeds": of_seeds, "of_rows": of_rows, "of_both": of_both}
    found = [
        seed_difference({"task": [pairs(noise(random, 3, 100, **noises))]}, resamples=50).p
        for _ in range(200)
    ]
    # Of 200 tests at 5 %, more than 18 have false winners with a probability of 0.5 %.
    assert sum(p < 0.05 for p in found) <= 18


def test_of_a_study_without_effects_few_name_a_winner():
    random = np.random.default_rng(6)
    named = 0
    for _ in range(40):
        models = noise(random, 8 * 3, 100, of_seeds=0.03, of_rows=0.3, of_both=0.3)
        baseline, *others = models.reshape(8, 3, 100)
        differences = [other - baseline for other in others]
        priors = {"task": seed_prior([each.mean(1) for each in differences])}
        found = [
            seed_difference({"task": [pairs(each)]}, priors, resamples=50) for each in differences
        ]
        named += min(holm([each.p for each in found])) < 0.05
    # Of 40 studies at 5 %, more than 6 name one with a probability of 0.3 %.
    assert named <= 6


def test_prior_is_the_common_variance_where_comparisons_agree():
    random = np.random.default_rng(7)
    alike = seed_prior(random.normal(0, 0.1, size=(30, 3)))
    assert alike.variance == pytest.approx(0.01, rel=0.3)
    assert alike.freedom > 10
    scales = np.exp(random.normal(0, 2, size=(30, 1)))
    assert seed_prior(scales * random.normal(size=(30, 3))).freedom < 4
    assert seed_prior(random.normal(size=(2, 3))) is None
    assert seed_prior(np.ones((9, 3))) is None


def test_prior_makes_few_seeds_tell_what_they_show():
    values = np.repeat([[0.1], [0.3], [0.25]], 50, axis=1)
    alone = seed_difference({"task": [pairs(values)]}, resamples=50)
    known = {"task": SeedPrior(0.01, 20)}
    assert seed_difference({"task": [pairs(values)]}, known, resamples=50).p < alone.p / 5


def test_wilcoxon_is_only_computed_where_it_could_show_something():
    few = wilcoxon([0.1, 0.2, 0.3])
    assert (few.n, few.p) == (3, None)
    assert few.reason == "3 seeds; 6 are needed, as its smallest p-value is 0.25"
    differences = [0.11, 0.2, 0.31, 0.42, 0.53, 0.64]
    assert wilcoxon(differences).p == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert wilcoxon(differences).p == pytest.approx(2 / 64)
    assert wilcoxon([0.0] * 6).p == 1


def test_holm_multiplies_the_smallest_most():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
