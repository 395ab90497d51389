"""Spreading segments over groups, and merging the groups' answers."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raydistill.index.fan_out_plan import assigned_groups
from raydistill.index.search_result import SearchResult, merged


def segments(sizes: list[int]) -> list[tuple[str, int]]:
    return [(hashlib.sha256(str(number).encode()).hexdigest(), size) for number, size in enumerate(sizes)]


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 9))
def test_no_group_is_much_heavier_than_the_others(sizes, groups):
    chosen = assigned_groups(segments(sizes), groups)
    assert len(chosen) == len(sizes)
    load = np.bincount(chosen, weights=sizes, minlength=groups)
    assert len(load) == groups
    assert load.max() <= 1.25 * sum(sizes) / groups + max(sizes)
    assert chosen == assigned_groups(segments(sizes), groups)


def test_most_segments_stay_when_others_are_added():
    before, after = assigned_groups(segments([100] * 64), 4), assigned_groups(segments([100] * 70), 4)
    moved = sum(old != new for old, new in zip(before, after[:64], strict=True))
    assert moved <= 8, "an even shuffle would move 48"


def test_one_segment_a_group_where_there_are_as_many():
    assert sorted(assigned_groups(segments([500, 500, 500]), 3)) == [0, 1, 2]


@given(
    st.lists(st.lists(st.integers(1, 4), max_size=8), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
)
def test_merging_is_sorting_by_score_and_then_by_number(scores_by_group, k, seed):
    """Law: the k best of the groups' k best are the k best of all."""
    count = sum(map(len, scores_by_group))
    numbers = np.random.default_rng(seed).permutation(count).tolist()
    everything, results = [], []
    for scores in scores_by_group:
        found = sorted((-float(score), numbers.pop()) for score in scores)
        everything += found
        best = found[:k] + [(np.inf, -1)] * (k - len(found))
        passages = np.array([[number for _, number in best]], dtype=np.int64)
        results.append(SearchResult(passages, np.array([[-score for score, _ in best]], dtype=np.float32)))
    result = merged(results, k)
    expected = (sorted(everything) + [(np.inf, -1)] * k)[:k]
    assert result.passages.tolist() == [[number for _, number in expected]]
    assert result.scores.tolist() == [[-score for score, _ in expected]]
    assert (result.passages.dtype, result.scores.dtype) == (np.int64, np.float32)
