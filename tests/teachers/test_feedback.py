"""A reward says how good a ranking is, with gold passages and without, whatever the scale of its scores."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import nDCG

from raydistill.teachers.feedback import margin, ndcg, rewards

NAN = np.nan


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_ndcg_is_that_of_ir_measures(size: int, unfound: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.permutation(size).astype(np.float64)
    relevant = random.random(size) < 0.3
    golds = int(relevant.sum()) + unfound
    qrels = {"q": {str(place): 1 for place in np.flatnonzero(relevant)} | {f"not {n}": 1 for n in range(unfound)}}
    run = {"q": {str(place): float(score) for place, score in enumerate(scores)}}
    expected = ir_measures.calc_aggregate([nDCG @ 10], qrels, run)[nDCG @ 10]
    assert ndcg(scores, relevant, golds) == pytest.approx(expected)


def test_equal_scores_share_what_their_ranks_are_worth() -> None:
    relevant = np.array([True, False, False])
    mean = np.mean([1 / np.log2(rank + 1) for rank in (1, 2, 3)])
    assert ndcg(np.zeros(3), relevant, 1) == pytest.approx(mean)
    assert ndcg(np.zeros(200), np.arange(200) < 1, 1) == pytest.approx(
        sum(1 / np.log2(rank + 1) for rank in range(1, 11)) / 200
    )


@given(st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 2**32 - 1))
def test_a_margin_knows_neither_scale_nor_origin(scale: float, shift: float, seed: int) -> None:
    scores = np.random.default_rng(seed).gamma(2.0, size=50)
    assert margin(scores * scale + shift) == pytest.approx(margin(scores), rel=1e-6)


def test_a_margin_grows_as_the_best_stand_out() -> None:
    flat = np.linspace(0, 1, 100)
    steep = np.concatenate([np.linspace(0, 0.1, 90), np.linspace(0.9, 1.0, 10)])
    assert margin(steep) > margin(flat) > 0
    assert margin(np.full(30, 2.5)) == 0
    assert margin(np.arange(10.0)) == 0  # nothing lies below the best


def test_rewards_of_queries_and_teachers() -> None:
    scores = np.random.default_rng(3).normal(size=(2, 3, 25))
    scores[0, 1] = NAN
    scores[1, 0, :5] = NAN
    relevant = np.zeros((2, 25), dtype=bool)
    relevant[1, 7] = True
    found = rewards(scores, relevant)
    assert found.shape == (2, 3)
    assert np.isnan(found[0, 1])
    assert found[0, 0] == margin(scores[0, 0])  # nothing is gold
    assert found[1, 2] == ndcg(scores[1, 2], relevant[1], 1)
    assert found[1, 0] == ndcg(scores[1, 0, 5:], relevant[1, 5:], 1)
    np.testing.assert_array_equal(rewards(scores)[0], rewards(scores, relevant)[0])
