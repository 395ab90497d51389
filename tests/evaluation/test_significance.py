"""Intervals and p-values: seeded, correct against scipy, honest about no difference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.evaluation.significance import compare, holm, mean_interval, paired_t_p, randomisation_p

stats = pytest.importorskip("scipy.stats")

DRAW = np.random.default_rng(3)
FIRST, SECOND = DRAW.normal(0.5, 0.2, 60), DRAW.normal(0.42, 0.2, 60)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 3000), st.floats(-0.3, 0.3), st.integers(0, 1000))
def test_t_test_agrees_with_scipy(size: int, shift: float, seed: int) -> None:
    difference = np.random.default_rng(seed).normal(shift, 1.0, size)
    expected = stats.ttest_1samp(difference, 0.0).pvalue
    assert paired_t_p(difference) == pytest.approx(expected, rel=1e-8, abs=1e-14)


def test_randomisation_agrees_with_scipy() -> None:
    difference = FIRST[:30] - SECOND[:30]
    expected = stats.permutation_test(
        (FIRST[:30], SECOND[:30]),
        lambda first, second, axis: np.mean(first - second, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=100_000,
        rng=np.random.default_rng(5),
    ).pvalue
    assert randomisation_p(difference, 100_000, seed=1) == pytest.approx(expected, abs=0.006)


def test_bootstrap_interval_agrees_with_scipy() -> None:
    interval = mean_interval(FIRST, 20_000, seed=1)
    expected = stats.bootstrap(
        (FIRST,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert interval.mean == pytest.approx(FIRST.mean())
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.002)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    assert compare(FIRST, SECOND, 500, seed=7) == compare(FIRST, SECOND, 500, seed=7)
    assert mean_interval(FIRST, 500, seed=7) != mean_interval(FIRST, 500, seed=8)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(11)
    intervals = [mean_interval(draw.exponential(1.0, 80), 400, seed=number) for number in range(300)]
    coverage = np.mean([interval.low <= 1.0 <= interval.high for interval in intervals])
    assert 0.89 <= coverage <= 0.98


def test_equal_systems_differ_by_nothing() -> None:
    comparison = compare(FIRST, FIRST, 200, seed=0)
    assert (comparison.difference.low, comparison.difference.high, comparison.p_value) == (0.0, 0.0, 1.0)
    assert (comparison.wins, comparison.losses) == (0, 0)
    assert paired_t_p(np.zeros(4)) == 1.0
    assert paired_t_p(np.ones(1)) == 1.0


def test_a_clear_difference_is_found_by_both_tests_and_never_p_zero() -> None:
    for test in ("randomisation", "t"):
        comparison = compare(SECOND + 0.3, SECOND, 999, seed=0, test=test)
        assert comparison.p_value <= 0.001
        assert comparison.difference.low > 0.29
        assert comparison.wins == 60
    assert randomisation_p(np.ones(50), 999, seed=0) == 1 / 1000


def test_blocks_do_not_change_the_number_of_samples() -> None:
    values = np.random.default_rng(0).normal(size=30_000)  # more than one block at 200 samples
    interval = mean_interval(values, 200, seed=0)
    half_width = 1.96 * values.std() / np.sqrt(values.size)
    assert interval.high - interval.low == pytest.approx(2 * half_width, rel=0.25)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_unpaired_or_empty_values_are_refused() -> None:
    with pytest.raises(ValueError, match="as many values on both sides"):
        compare(FIRST, SECOND[:-1], 10, seed=0)
    with pytest.raises(ValueError, match="needs values and samples"):
        mean_interval(np.zeros(0), 10, seed=0)
