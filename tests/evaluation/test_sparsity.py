"""FLOPS and L0 against hand-computed cases, and the law that FLOPS is the mean of the queries' own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.encoders.batch import SparseBatch
from raydistill.evaluation.sparsity import active_counts, active_share, flops, query_flops

ROWS = st.lists(st.dictionaries(st.integers(0, 6), st.floats(0.1, 3.0), max_size=7), min_size=1, max_size=8)


def test_flops_by_hand() -> None:
    queries = SparseBatch.from_rows([{0: 1.0, 1: 0.5}, {1: 2.0}], vocabulary_size=4)
    passages = SparseBatch.from_rows([{1: 1.0}, {1: 3.0, 3: 1.0}, {0: 1.0}, {3: 1.0}], vocabulary_size=4)
    share = active_share(active_counts(passages), len(passages))
    np.testing.assert_allclose(share, [0.25, 0.5, 0.0, 0.5])
    # Query 1 shares a term with passages 0, 1 (term 1) and 2 (term 0): 3 shared terms in 4 pairs; query 2: 2 in 4.
    np.testing.assert_allclose(query_flops(queries, share), [0.75, 0.5])
    assert flops(active_share(active_counts(queries), 2), share) == pytest.approx(0.625)


@given(ROWS, ROWS)
def test_flops_is_the_mean_number_of_shared_terms(
    query_rows: list[dict[int, float]], passage_rows: list[dict[int, float]]
) -> None:
    queries, passages = SparseBatch.from_rows(query_rows, 7), SparseBatch.from_rows(passage_rows, 7)
    share = active_share(active_counts(passages), len(passages))
    pairs = [len(set(query) & set(passage)) for query in query_rows for passage in passage_rows]
    assert flops(active_share(active_counts(queries), len(queries)), share) == pytest.approx(np.mean(pairs))
    assert query_flops(queries, share).mean() == pytest.approx(np.mean(pairs))


def test_weights_do_not_enter() -> None:
    light, heavy = SparseBatch.from_rows([{2: 0.01}], 3), SparseBatch.from_rows([{2: 90.0}], 3)
    share = np.array([0.0, 0.1, 0.7])
    assert query_flops(light, share).tolist() == query_flops(heavy, share).tolist() == [0.7]


def test_counts_and_vocabularies_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="same vocabulary"):
        query_flops(SparseBatch.from_rows([{0: 1.0}], 3), np.zeros(4))
    with pytest.raises(ValueError, match="at least one row"):
        active_share(np.zeros(3, dtype=np.int64), 0)
    with pytest.raises(ValueError, match="counted in 3 rows of 2"):
        active_share(np.array([3]), 2)
