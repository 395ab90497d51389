"""What a sparse query costs: active terms (L0) and FLOPS, the expected number of terms shared with a passage.

FLOPS(Q, D) = sum_v p_q(v) p_d(v), p being the share of queries and of passages in which term v is active (Paria et al.,
ICLR 2020; as reported by Formal et al. and by DiSCo). The sum is linear in the queries: it is the mean over queries of
sum over the query's active terms of p_d(v). So every query has a FLOPS of its own, and intervals and turn depths come free.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raydistill.encoders.batch import SparseBatch


def active_counts(batch: SparseBatch) -> NDArray[np.int64]:
    """Return in how many rows each term is active, int64 [V]."""
    return np.bincount(batch.term_ids, minlength=batch.vocabulary_size).astype(np.int64)


def active_share(counts: NDArray[np.int64], rows: int) -> NDArray[np.float64]:
    """Return p(v) = counts / rows, float64 [V]; ValueError when there is no row or a count exceeds their number."""
    if rows < 1:
        raise ValueError("the share of rows in which a term is active needs at least one row")
    if counts.size and int(counts.max()) > rows:
        raise ValueError(f"a term is counted in {int(counts.max())} rows of {rows}")
    return counts.astype(np.float64) / rows


def flops(query_share: NDArray[np.float64], passage_share: NDArray[np.float64]) -> float:
    """Return sum_v p_q(v) p_d(v); both float64 [V]."""
    _check_vocabularies(query_share.size, passage_share.size)
    return float(query_share @ passage_share)


def query_flops(queries: SparseBatch, passage_share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each query's sum of p_d(v) over its active terms, float64 [rows]; their mean is FLOPS(Q, D)."""
    _check_vocabularies(queries.vocabulary_size, passage_share.size)
    sums = np.concatenate([[0.0], np.cumsum(passage_share[queries.term_ids])])
    return sums[queries.indptr[1:]] - sums[queries.indptr[:-1]]


def _check_vocabularies(queries: int, passages: int) -> None:
    if queries != passages:
        raise ValueError(f"queries are over {queries} terms and passages over {passages}; FLOPS needs the same vocabulary")
