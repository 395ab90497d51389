"""Explanations add up to the score, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_segment_search import open_segments, random_batch

from raydistill.encoders.batch import SparseBatch
from raydistill.errors import DataError
from raydistill.index.search import Searcher


@pytest.mark.parametrize("impacts", ["f32", "f16", "u8"])
def test_contributions_added_in_order_are_the_score_to_the_bit(tmp_path: Path, impacts: str) -> None:
    rng = np.random.default_rng(5)
    vectors, queries = random_batch(rng, 120, 300, 0.5), random_batch(rng, 6, 300, 0.5)
    searcher = Searcher(open_segments(tmp_path, [vectors.select(range(50)), vectors.select(range(50, 120))], impacts))
    stored = searcher.vectors(np.arange(120)).to_dense()
    for row, exact in enumerate(searcher.scores(queries, [np.arange(120)] * 6)):
        query = queries.select([row])
        for passage in range(0, 120, 7):
            found = searcher.explain(query, passage)
            total = np.float32(0.0)
            for contribution in found.contributions:
                total = np.float32(total + contribution)
            assert total == found.score == exact[passage]
            shared = np.flatnonzero((query.to_dense()[0] > 0) & (stored[passage] > 0))
            np.testing.assert_array_equal(found.terms, shared)
            np.testing.assert_array_equal(found.impacts, stored[passage, shared])
            np.testing.assert_array_equal(found.query_weights, query.to_dense()[0, shared])


def test_the_heaviest_terms_come_first_and_nothing_shared_is_nothing(tmp_path: Path) -> None:
    vectors = SparseBatch.from_rows([{1: 2.0, 2: 4.0, 3: 1.0, 5: 2.0}, {4: 1.0}], 6)
    searcher = Searcher(open_segments(tmp_path, [vectors]))
    query = SparseBatch.from_rows([{1: 2.0, 2: 1.0, 3: 1.0, 5: 1.0}], 6)
    assert searcher.explain(query, 0).heaviest(3) == [(1, 4.0), (2, 4.0), (5, 2.0)]
    assert searcher.explain(query, 1).score == 0.0
    assert searcher.explain(query, 1).heaviest(3) == []
    with pytest.raises(DataError, match="one query can be explained"):
        searcher.explain(vectors, 0)
    with pytest.raises(DataError, match="passage number 2"):
        searcher.explain(query, 2)
