"""What a search finds: the best passages of each query, while segments are searched, afterwards, and of several results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydistill.index.heaps import sort_heap


@dataclass(frozen=True)
class SearchResult:
    """The best passages of each query, best first.

    Attributes:
        passages: int64 [B, k]; passage numbers, padded with -1.
        scores: float32 [B, k]; > 0, padded with -inf.
    """

    passages: NDArray[np.int64]
    scores: NDArray[np.float32]


class QueryHeaps:
    """The best passages of B queries so far: a bounded heap a query (see `heaps`), and what was read for it.

    Attributes:
        scores: float32 [B, width]. passages: int64 [B, width]. filled: int64 [B]; items of each heap.
        touched: int64 [B, 2]; postings and entries of forward vectors read.
    """

    def __init__(self, queries: int, width: int) -> None:
        self.scores = np.zeros((queries, width), dtype=np.float32)
        self.passages = np.zeros((queries, width), dtype=np.int64)
        self.filled = np.zeros(queries, dtype=np.int64)
        self.touched = np.zeros((queries, 2), dtype=np.int64)

    def result(self, k: int) -> SearchResult:
        """Return the heaps' items as a result of k >= width places; sorts the heaps, which are none any more."""
        scores = np.full((len(self.filled), k), -np.inf, dtype=np.float32)
        passages = np.full((len(self.filled), k), -1, dtype=np.int64)
        for query, count in enumerate(self.filled.tolist()):
            sort_heap(self.scores[query], self.passages[query], count)
            scores[query, :count] = self.scores[query, :count]
            passages[query, :count] = self.passages[query, :count]
        return SearchResult(passages, scores)


def merged(results: Sequence[SearchResult], k: int) -> SearchResult:
    """Return the k best passages of each query over several results, at least one.

    Higher scores come first, of equal scores the lower passage number. The results must hold different passages, and k of
    them where there are as many; then this equals one search over everything.
    """
    passages = np.concatenate([result.passages for result in results], axis=1)
    scores = np.concatenate([result.scores for result in results], axis=1)
    best = np.lexsort((passages, -scores), axis=1)[:, :k]
    return SearchResult(np.take_along_axis(passages, best, axis=1), np.take_along_axis(scores, best, axis=1))
