"""Filtered searches equal a filtered brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_segment_search import open_segments, sparse_rows

from raydistill.encoders.batch import SparseBatch
from raydistill.index.filters import PassageFilter
from raydistill.index.passage_masks import mask_without, members
from raydistill.index.search import Searcher


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(sparse_rows(7, 90), min_size=1, max_size=3),
    queries=sparse_rows(7, 4),
    k=st.integers(1, 60),
    named=st.lists(st.integers(-3, 280)),
    allows=st.booleans(),
)
def test_a_filter_leaves_the_other_passages_in_their_order(tmp_path, parts, queries, k, named, allows):
    searcher = Searcher(open_segments(tmp_path, parts))
    found = searcher.search(
        queries, k, (PassageFilter.only if allows else PassageFilter.without)(np.array(named, dtype=int))
    )
    scores = queries.to_dense() @ SparseBatch.concatenate(parts).to_dense().T
    passes = np.isin(np.arange(scores.shape[1]), named) == allows
    for row in range(len(queries)):
        order = np.lexsort((np.arange(scores.shape[1]), -scores[row]))
        expected = [number for number in order.tolist() if scores[row, number] > 0 and passes[number]][:k]
        assert found.passages[row][found.passages[row] >= 0].tolist() == expected
        np.testing.assert_array_equal(found.scores[row, : len(expected)], scores[row, expected])


def test_filters_by_external_ids(tmp_path: Path) -> None:
    rows = SparseBatch.from_rows([{0: 1.0 + number} for number in range(6)], 2)
    searcher = Searcher(open_segments(tmp_path, [rows.select(range(3)), rows.select(range(3, 6))]))
    query = SparseBatch.from_rows([{0: 1.0}], 2)
    numbers = searcher.find(["s0-1", "s1-2", "unknown"])
    only = searcher.search(query, 6, PassageFilter.only(numbers))
    assert searcher.passage_ids(only.passages[0, :2]) == ["s1-2", "s0-1"]
    assert only.passages[0, 2:].tolist() == [-1] * 4
    without = searcher.search(query, 6, PassageFilter.without(numbers))
    assert searcher.passage_ids(without.passages[0, :4]) == ["s1-1", "s1-0", "s0-2", "s0-0"]


@pytest.mark.parametrize("allows", [True, False])
def test_a_mask_covers_its_range_alone(allows: bool) -> None:
    numbers = np.array([5, 9, 12])
    chosen = PassageFilter.only(numbers) if allows else PassageFilter.without(numbers)
    mask = chosen.mask(5, 6)
    assert mask is not None
    assert np.flatnonzero(members(mask, np.arange(6)) == allows).tolist() == [0, 4]
    outside = chosen.mask(20, 3)
    assert (outside is None) != allows
    assert outside is None or not members(outside, np.arange(3)).any()


def test_deleted_passages_stay_deleted_whatever_is_allowed(tmp_path: Path) -> None:
    rows = SparseBatch.from_rows([{0: 1.0 + number} for number in range(6)], 2)
    searcher = Searcher(open_segments(tmp_path, [rows]), allowed=[mask_without(6, [5, 1])])
    query = SparseBatch.from_rows([{0: 1.0}], 2)
    only = searcher.search(query, 3, PassageFilter.only(np.array([5, 4, 1, 0])))
    assert only.passages.tolist() == [[4, 0, -1]]
    without = searcher.search(query, 3, PassageFilter.without(np.array([4])))
    assert without.passages.tolist() == [[3, 2, 0]]
