"""Impacts as whole numbers, as engines of term frequencies need them, and what that does to rankings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydistill.encoders.batch import SparseBatch
from raydistill.index.search import Searcher

_POOL = 1000
_DEPTH = 10
_QUERY_TERMS = 16


@dataclass(frozen=True)
class Quantisation:
    """whole number = impact * scale, rounded to the nearest (halves to even), within 1..largest.

    No impact becomes 0, so that every engine finds the same passages.
    """

    scale: float
    largest: int

    def apply(self, impacts: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return int32 whole numbers of float32 impacts, same shape."""
        return np.clip(np.rint(impacts.astype(np.float64) * self.scale), 1, self.largest).astype(np.int32)


def quantisation(largest_impact: float, bits: int, scale: float | None) -> Quantisation:
    """Return the quantisation by which the largest impact becomes 2^bits - 1, or the one of a given scale."""
    if scale is not None:
        return Quantisation(scale, 2**31 - 1)
    return Quantisation((2**bits - 1) / largest_impact if largest_impact else 1.0, 2**bits - 1)


@dataclass(frozen=True)
class Overlap:
    """How far rankings by whole numbers are those by the stored impacts.

    Attributes:
        queries: measured.
        mean: share of the exact top 10 that is in the top 10 by whole numbers, averaged over the queries.
        proven: share of the queries for which no passage outside the pool can be in the top 10 by whole numbers.
    """

    queries: int
    mean: float
    proven: float


def top_overlap(searcher: Searcher, queries: SparseBatch, quantised: Quantisation) -> Overlap:
    """Return the overlap of the top 10 of some queries (weights as they are) by stored impacts and by whole numbers.

    The exact top 1,000 of a query are scored anew by the whole numbers. An impact moves by at most 1 / scale, so a passage
    that is not among them gains at most the sum of the query's weights / scale: where that does not lift it to the tenth
    place, the overlap is exact; `proven` tells for how many queries.
    """
    shares, proven = [], []
    for row in range(len(queries)):
        query = queries.select([row])
        found = searcher.search(query, _POOL)
        pool = found.passages[0][found.passages[0] >= 0]
        if not len(pool):
            continue
        stored = searcher.vectors(pool)
        whole = SparseBatch(
            stored.indptr, stored.term_ids, quantised.apply(stored.weights).astype(np.float32), stored.vocabulary_size
        )
        dense = np.zeros(queries.vocabulary_size, dtype=np.float64)
        dense[query.term_ids] = query.weights
        scores = np.array([dense[terms] @ weights for terms, weights in map(whole.row, range(len(whole)))])
        best = pool[np.lexsort((pool, -scores))][:_DEPTH]
        exact = pool[:_DEPTH]
        shares.append(len(np.intersect1d(best, exact)) / len(exact))
        if len(pool) < _POOL:
            proven.append(True)
        else:
            gain = float(query.weights.astype(np.float64).sum()) / quantised.scale
            tenth = np.sort(scores)[-_DEPTH] / quantised.scale
            proven.append(bool(found.scores[0, len(pool) - 1] + gain < tenth))
    if not shares:
        return Overlap(0, 1.0, 1.0)
    return Overlap(len(shares), float(np.mean(shares)), float(np.mean(proven)))


def passages_as_queries(searcher: Searcher, count: int, seed: int = 0) -> SparseBatch:
    """Return the 16 heaviest terms of `count` random passages as queries: what an index can be asked when nothing else is
    known. Passages without terms are left out; deleted ones may be among them."""
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.choice(searcher.passages, size=min(count, searcher.passages), replace=False))
    ends = np.cumsum([segment.passages for segment in searcher.segments])
    owners = np.searchsorted(ends, drawn, side="right")
    starts = ends - [segment.passages for segment in searcher.segments]
    vectors = searcher.vectors(searcher.first_passages[owners] + drawn - starts[owners])
    return vectors.select(np.flatnonzero(vectors.lengths())).heaviest(_QUERY_TERMS)
