"""Strengths from soft comparisons, and probabilities from scores, against plain references and laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from raydistill.scoring.calibration import Calibration, fit, log_loss
from raydistill.scoring.preference import PRIOR, bradley_terry, schedule


def loss_of(strength: np.ndarray, first: np.ndarray, second: np.ndarray, log_odds: np.ndarray) -> float:
    """The negative of what `bradley_terry` maximises, from its formula."""
    won = 1 / (1 + np.exp(-log_odds))
    difference = strength[first] - strength[second]
    likelihood = won * -np.log1p(np.exp(-difference)) + (1 - won) * -np.log1p(np.exp(difference))
    return float(-likelihood.sum() + PRIOR / 2 * (strength**2).sum())


@pytest.mark.parametrize("seed", range(5))
def test_strengths_maximise_the_likelihood(seed: int) -> None:
    random = np.random.default_rng(seed)
    pairs = np.array(schedule(9, 4))
    first, second = pairs.T
    log_odds = random.normal(scale=3.0, size=len(pairs))
    found = bradley_terry(first, second, log_odds, 9)
    reference = minimize(loss_of, np.zeros(9), args=(first, second, log_odds), tol=1e-12).x
    np.testing.assert_allclose(found, reference, atol=1e-4)
    assert found.sum() == pytest.approx(0, abs=1e-9)


@given(st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_consistent_comparisons_give_their_strengths_back(items: int, seed: int) -> None:
    strength = np.random.default_rng(seed).normal(size=items)
    strength -= strength.mean()
    first, second = np.array(schedule(items, items)).T
    found = bradley_terry(first, second, strength[first] - strength[second], items, prior=1e-9)
    np.testing.assert_allclose(found, strength, atol=1e-5)


def test_certain_outcomes_stay_finite_and_the_unknown_is_absent() -> None:
    first, second = np.array([[0, 1], [1, 2], [0, 2]]).T
    found = bradley_terry(first, second, np.array([50.0, 80.0, np.inf]), 4)
    assert found[0] > found[1] > found[2]
    assert np.isfinite(found[:3]).all()
    assert np.isnan(found[3])
    assert np.isnan(bradley_terry(first, second, np.array([1.0, np.nan, np.nan]), 3)).tolist() == [False, False, True]


@given(st.integers(1, 60), st.integers(1, 20))
def test_a_schedule_compares_everybody_a_bounded_number_of_times(items: int, opponents: int) -> None:
    pairs = schedule(items, opponents)
    assert len(set(pairs)) == len(pairs)
    assert all(0 <= one < other < items for one, other in pairs)
    met = np.bincount(np.array(pairs, dtype=np.int64).reshape(-1), minlength=items)
    assert met.max(initial=0) <= max(opponents, 2)
    if items > 1:
        assert met.min() >= 1
        # All strengths hang together: everybody is reached from the first.
        reached = {0}
        while grown := {a for pair in pairs for a in pair if set(pair) & reached} - reached:
            reached |= grown
        assert reached == set(range(items))


def test_a_calibration_is_the_logistic_regression_with_platts_targets() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(loc=4, scale=3, size=400)
    labels = random.random(400) < 1 / (1 + np.exp(-(0.7 * scores - 3.5)))
    found = fit(scores, labels)
    good, bad = labels.sum(), (~labels).sum()
    target = np.where(labels, (good + 1) / (good + 2), 1 / (bad + 2))

    def loss(weights: np.ndarray) -> float:
        log_odds = weights[0] * scores + weights[1]
        return float((target * np.log1p(np.exp(-log_odds)) + (1 - target) * np.log1p(np.exp(log_odds))).sum())

    np.testing.assert_allclose((found.slope, found.intercept), minimize(loss, np.zeros(2), tol=1e-10).x, rtol=1e-3)
    assert (found.slope, found.intercept) == pytest.approx((0.7, -3.5), rel=0.25)


@pytest.mark.parametrize("scale", [0.05, 1.0, 40.0])
def test_a_calibration_lowers_the_loss_on_labels_it_has_not_seen(scale: float) -> None:
    """A judge that is over- or underconfident and biased, as language models are."""
    random = np.random.default_rng(1)
    truth = random.normal(loc=-1.5, scale=2.0, size=4000)
    labels = random.random(4000) < 1 / (1 + np.exp(-truth))
    scores = scale * (truth + 2.0) + random.normal(scale=0.3 * scale, size=4000)
    found = fit(scores[:2000], labels[:2000])
    before, after = (log_loss(values[2000:], labels[2000:]) for values in (scores, found.log_odds(scores)))
    best = log_loss(truth[2000:], labels[2000:])
    assert best <= after < before
    assert after < best + 0.03


def test_what_tells_nothing_is_refused_or_left_out() -> None:
    with pytest.raises(ValueError, match="got 0 and 3"):
        fit(np.arange(3.0), np.zeros(3, dtype=bool))
    scores, labels = np.array([1.0, 2.0, 3.0, np.nan]), np.array([False, True, True, False])
    assert fit(scores, labels) == fit(scores[:3], labels[:3])
    apart = fit(np.array([0.0, 1.0]), np.array([False, True]))
    assert np.isfinite([apart.slope, apart.intercept]).all()
    assert fit(np.ones(4), labels).slope == pytest.approx(0)
    np.testing.assert_array_equal(Calibration(2.0, 1.0).log_odds(np.array([0.5, np.nan])), [2.0, np.nan])
