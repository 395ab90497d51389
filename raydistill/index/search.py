"""Exact search over segments on one machine: top k, scores of given passages, their vectors and ids.

Pure array code on memory-mapped segments (the loops are in `accumulate`). Spreading segments over machines is not here.

Cost: one pass over the postings of the query's terms, about 1.2 ns each, and over one float32 accumulator a passage;
so time grows linearly with the number of passages, and k matters little. Memory: one accumulator array of the
largest segment a thread, beside the mapped pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raydistill.encoders.batch import SparseBatch
from raydistill.errors import DataError
from raydistill.index.accumulate import score_pairs, search_segment
from raydistill.index.forward import gathered, owning_segments
from raydistill.index.passage_masks import Mask, members
from raydistill.index.segment import Segment
from raydistill.index.tombstones import live_mask

if TYPE_CHECKING:
    from raydistill.index.publish import IndexVersion


@dataclass(frozen=True)
class SearchResult:
    """The best passages of each query, best first.

    Attributes:
        passages: int64 [B, k]; passage numbers, padded with -1.
        scores: float32 [B, k]; > 0, padded with -inf.
    """

    passages: NDArray[np.int64]
    scores: NDArray[np.float32]


class Searcher:
    """Segments searched as one collection.

    Passage numbers run through the collection: passage n of segment s is first_passages[s] + n.

    Args:
        segments: all over the same vocabulary; at least one.
        first_passages: number of each segment's first passage; the ranges must not overlap. None numbers the segments
            one after another.
        threads: compute threads of `search`; they release the GIL.
        allowed: a mask (see `passage_masks`) for each segment of the passages that are not deleted, None where none is; None
            for no deleted passage at all. Deleted passages are never found, by query or id, but keep their numbers: whoever
            holds a number gets its scores, vector and id.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        first_passages: Sequence[int] | None = None,
        threads: int = 1,
        allowed: Sequence[Mask | None] | None = None,
    ) -> None:
        if not segments:
            raise DataError("an index without segments cannot be searched; build it from a corpus with passages")
        sizes = sorted({segment.vocabulary_size for segment in segments})
        if len(sizes) > 1:
            raise DataError(f"segments over vocabularies of {sizes} terms cannot be searched together; rebuild the index")
        if first_passages is None:
            first_passages = np.cumsum([0] + [segment.passages for segment in segments[:-1]]).tolist()
        if len(first_passages) != len(segments):
            raise DataError(f"{len(segments)} segments but {len(first_passages)} first passage numbers; give one each")
        allowed = [None] * len(segments) if allowed is None else allowed
        if len(allowed) != len(segments):
            raise DataError(f"{len(segments)} segments but {len(allowed)} masks of their passages; give one each")
        order = np.argsort(np.asarray(first_passages, dtype=np.int64), kind="stable")
        self.segments = tuple(segments[position] for position in order)
        self.allowed = tuple(allowed[position] for position in order)
        self.first_passages = np.asarray(first_passages, dtype=np.int64)[order]
        self._ends = self.first_passages + [segment.passages for segment in self.segments]
        if np.any(self.first_passages[1:] < self._ends[:-1]):
            raise DataError("the passage numbers of two segments overlap; the index manifest is inconsistent")
        self.vocabulary_size = sizes[0]
        self.threads = max(1, threads)

    @property
    def passages(self) -> int:
        """Number of passages in the collection, deleted ones included."""
        return sum(segment.passages for segment in self.segments)

    def search(self, queries: SparseBatch, k: int) -> SearchResult:
        """Return the k passages with the highest scores, exactly; B queries, any k >= 1.

        score = sum over shared terms of query weight * stored impact, in float32, equal to the bit to `scores`. Only
        passages with a score > 0 are returned. Of equal scores the lower passage number comes first.
        """
        self._check_queries(queries)
        if k < 1:
            raise DataError(f"k is {k}; ask for at least one passage")
        width = min(k, self.passages)
        scores = np.zeros((len(queries), width), dtype=np.float32)
        passages = np.zeros((len(queries), width), dtype=np.int64)
        filled = np.zeros(len(queries), dtype=np.int64)

        def run(bounds: tuple[int, int]) -> None:
            for segment, first, allowed in zip(self.segments, self.first_passages.tolist(), self.allowed, strict=True):
                search_segment(
                    segment.term_offsets,
                    segment.posting_passages,
                    segment.codes(segment.posting_impacts),
                    segment.decoding,
                    first,
                    queries.indptr,
                    queries.term_ids,
                    queries.weights,
                    bounds[0],
                    bounds[1],
                    np.zeros(segment.passages, dtype=np.float32),
                    allowed,
                    scores,
                    passages,
                    filled,
                )

        if width:
            self._spread(run, len(queries))
        return _sorted_result(scores, passages, filled, k)

    def _spread(self, run: Callable[[tuple[int, int]], None], queries: int) -> None:
        threads = min(self.threads, queries)
        edges = np.linspace(0, queries, threads + 1).astype(int).tolist()
        ranges = list(pairwise(edges))
        if threads <= 1:
            for bounds in ranges:
                run(bounds)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, ranges))

    def scores(self, queries: SparseBatch, passages: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Return the score of every given passage by its query, from the forward vectors; 0 where no term is shared.

        Args:
            queries: B rows.
            passages: B arrays int64 [C_b] of passage numbers, any order, repeats allowed.

        Returns:
            B arrays float32 [C_b], equal to the bit to what `search` gives for the same passage.

        Raises:
            DataError: a number is no passage of the collection, or the counts differ.
        """
        self._check_queries(queries)
        if len(passages) != len(queries):
            raise DataError(f"{len(queries)} queries but {len(passages)} lists of passages to score; give one each")
        offsets = np.zeros(len(queries) + 1, dtype=np.int64)
        np.cumsum([len(numbers) for numbers in passages], out=offsets[1:])
        flat = np.concatenate([np.zeros(0, dtype=np.int64), *passages]).astype(np.int64)
        owners = self._owners(flat)
        result = np.zeros(len(flat), dtype=np.float32)
        dense_query = np.zeros(self.vocabulary_size, dtype=np.float32)
        for position, segment in enumerate(self.segments):
            rows = np.where(owners == position, flat - self.first_passages[position], -1)
            score_pairs(
                segment.row_offsets,
                segment.terms,
                segment.codes(segment.impacts),
                segment.decoding,
                queries.indptr,
                queries.term_ids,
                queries.weights,
                offsets,
                rows,
                dense_query,
                result,
            )
        return np.split(result, offsets[1:-1]) if len(queries) else []

    def vectors(self, passages: NDArray[np.int64]) -> SparseBatch:
        """Return the stored vectors of passages (int64 [C], any order, repeats allowed), impacts as float32."""
        numbers = np.asarray(passages, dtype=np.int64)
        owners = self._owners(numbers)
        return gathered(self.segments.__getitem__, owners, numbers - self.first_passages[owners], self.vocabulary_size)

    def passage_ids(self, passages: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Return the external ids of passages, in the given order."""
        numbers = np.asarray(passages, dtype=np.int64)
        owners = self._owners(numbers)
        return [
            self.segments[owner].passage_id(number - int(self.first_passages[owner]))
            for owner, number in zip(owners.tolist(), numbers.tolist(), strict=True)
        ]

    def find(self, passage_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return passage numbers by external id, int64 [len(passage_ids)]; -1 where unknown or deleted.

        An id that several segments hold resolves to the lowest number that is not deleted.
        """
        numbers = np.full(len(passage_ids), -1, dtype=np.int64)
        for segment, first, allowed in zip(self.segments, self.first_passages, self.allowed, strict=True):
            local = segment.find_all(passage_ids)
            if allowed is not None:
                local[local >= 0] = np.where(members(allowed, local[local >= 0]), local[local >= 0], -1)
            numbers = np.where((numbers < 0) & (local >= 0), local + first, numbers)
        return numbers

    def _owners(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position of the segment of every passage number. Raises DataError for numbers that none holds."""
        return owning_segments(numbers, self.first_passages, self._ends)

    def _check_queries(self, queries: SparseBatch) -> None:
        # The compiled loops do not check bounds.
        if queries.vocabulary_size != self.vocabulary_size:
            raise DataError(
                f"queries are over {queries.vocabulary_size} terms but the index over {self.vocabulary_size}; "
                "encode them with the vocabulary the index was built with"
            )
        if queries.nnz and (queries.term_ids.min() < 0 or queries.term_ids.max() >= self.vocabulary_size):
            raise DataError(f"a query has a term id outside the vocabulary of {self.vocabulary_size} terms")
        if queries.nnz and not (queries.weights.min() > 0 and np.isfinite(queries.weights.max())):
            raise DataError("query weights must be finite and > 0; the query encoder gave others")


def _sorted_result(
    scores: NDArray[np.float32], passages: NDArray[np.int64], filled: NDArray[np.int64], k: int
) -> SearchResult:
    """Sort each heap, best first, and pad it to k."""
    best_scores = np.full((len(scores), k), -np.inf, dtype=np.float32)
    best_passages = np.full((len(scores), k), -1, dtype=np.int64)
    for query, count in enumerate(filled.tolist()):
        order = np.lexsort((passages[query, :count], -scores[query, :count]))
        best_scores[query, :count] = scores[query, order]
        best_passages[query, :count] = passages[query, order]
    return SearchResult(best_passages, best_scores)


def open_searcher(version: IndexVersion, threads: int = 1) -> Searcher:
    """Return a searcher over a published version; segments are fetched through the local cache and memory-mapped."""
    segments = [Segment(version.fetch(entry)) for entry in version.segments]
    first_passages = [entry.first_passage for entry in version.segments]
    return Searcher(segments, first_passages, threads, [live_mask(version, entry) for entry in version.segments])
