"""Exact search over segments on one machine: top k, scores of given passages, their vectors and ids.

Pure array code on memory-mapped segments (the loops are in `accumulate` and `skipping`). Spreading segments over machines is
not here.

Cost: at most one pass over the postings of the query's terms, under 1 ns each, and over one float32 accumulator a passage.
For small k most postings are skipped (see `skipping`); the result is the same to the bit. Memory: for each thread, one
accumulator a passage and one bound for 64 of the largest segment, and one float32 a term, kept from search to search, beside
the mapped pages.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raydistill.encoders.batch import SparseBatch
from raydistill.errors import DataError
from raydistill.index.accumulate import first_fault, score_pairs
from raydistill.index.explain import Explanation, explain
from raydistill.index.filters import PassageFilter
from raydistill.index.forward import gathered, owning_segments
from raydistill.index.passage_masks import Mask, members
from raydistill.index.postings import BLOCK, blocks_of
from raydistill.index.search_result import QueryHeaps, SearchResult, merged
from raydistill.index.segment import Segment
from raydistill.index.skipping import NEVER, USUAL, SkippingCosts, approximate_costs, search_segment
from raydistill.index.tombstones import live_mask

if TYPE_CHECKING:
    from raydistill.index.publish import IndexVersion


@dataclass(frozen=True)
class SearchCost:
    """What a search read.

    Attributes:
        matching: int64 [B]; postings of the query's terms, which an exhaustive search reads.
        postings: int64 [B]; postings read. vector_entries: int64 [B]; entries of forward vectors read.
    """

    matching: NDArray[np.int64]
    postings: NDArray[np.int64]
    vector_entries: NDArray[np.int64]


@dataclass(frozen=True)
class _Scratch:
    """What a thread computes in; all zero between uses."""

    accumulators: NDArray[np.float32]
    bounds: NDArray[np.float32]
    dense_query: NDArray[np.float32]


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
        self._starts: list[int] = self.first_passages.tolist()
        self._size = sum(segment.passages for segment in self.segments)
        if np.any(self.first_passages[1:] < self._ends[:-1]):
            raise DataError("the passage numbers of two segments overlap; the index manifest is inconsistent")
        self.vocabulary_size = sizes[0]
        self.threads = max(1, threads)
        self.costs = USUAL
        self._scratches: list[_Scratch] = []

    @property
    def passages(self) -> int:
        """Number of passages in the collection, deleted ones included."""
        return self._size

    def search(
        self, queries: SparseBatch, k: int, allowed: PassageFilter | None = None, approximate: float | None = None
    ) -> SearchResult:
        """Return the k best passages of every query by exact score.

        Only passages that share a term with the query are found. Of equal scores the lower passage number comes first.

        Args:
            allowed: the passages that may be found; None for any.
            approximate: None for the exact result. Else in [0, 1): what share of its upper bound a term that is not read
                counts for. The lower, the fewer postings are read and the more of the best passages are lost; scores of
                those found are exact. Recall is a matter of the data: benchmarks/search.py measures it.
        """
        return self._searched(queries, k, self._costs_of(approximate), allowed)[0]

    def measured_search(
        self,
        queries: SparseBatch,
        k: int,
        exhaustive: bool = False,
        approximate: float | None = None,
        allowed: PassageFilter | None = None,
    ) -> tuple[SearchResult, SearchCost]:
        """Return what `search` returns, and what was read for it; `exhaustive` reads all postings of the query's terms."""
        costs = NEVER if exhaustive else self._costs_of(approximate)
        result, touched = self._searched(queries, k, costs, allowed)
        frequency = np.zeros(queries.nnz, dtype=np.int64)
        for segment in self.segments:
            frequency += segment.document_frequency[queries.term_ids]
        running = np.concatenate([[0], np.cumsum(frequency)])
        matching = running[queries.indptr[1:]] - running[queries.indptr[:-1]]
        return result, SearchCost(matching, touched[:, 0], touched[:, 1])

    def _costs_of(self, approximate: float | None) -> SkippingCosts:
        if approximate is None:
            return self.costs
        if not 0.0 <= approximate < 1.0:
            raise DataError(
                f"approximate is {approximate}; give a share from 0 up to but not 1, or None for the exact result"
            )
        return approximate_costs(self.costs, approximate)

    def _searched(
        self, queries: SparseBatch, k: int, costs: SkippingCosts, allowed: PassageFilter | None
    ) -> tuple[SearchResult, NDArray[np.int64]]:
        """Return the result, and int64 [B, 2], the postings and entries of forward vectors that were read."""
        self._check_queries(queries)
        if k < 1:
            raise DataError(f"k is {k}; ask for at least one passage")
        heaps = QueryHeaps(len(queries), min(k, self.passages))
        if not heaps.scores.size:
            return heaps.result(k), heaps.touched
        masks = self._masks(allowed)
        everywhere = range(len(self.segments))
        if len(queries) >= self.threads or len(self.segments) == 1:
            # Queries differ in cost: a thread takes the next few when it is free.
            step = max(1, min(16, len(queries) // (8 * self.threads)))
            ranges = [(first, min(first + step, len(queries))) for first in range(0, len(queries), step)]
            self._spread(
                lambda scratch, bounds: self._run(queries, bounds, everywhere, heaps, costs, masks, scratch), ranges
            )
            return heaps.result(k), heaps.touched
        each = [QueryHeaps(*heaps.scores.shape) for _ in everywhere]
        self._spread(
            lambda scratch, at: self._run(queries, (0, len(queries)), [at], each[at], costs, masks, scratch), everywhere
        )
        touched = np.sum([found.touched for found in each], axis=0)
        return merged([found.result(k) for found in each], k), touched

    def _run(
        self,
        queries: SparseBatch,
        bounds: tuple[int, int],
        segments: Sequence[int],
        heaps: QueryHeaps,
        costs: SkippingCosts,
        masks: Sequence[Mask | None],
        scratch: _Scratch,
    ) -> None:
        for position in segments:
            segment = self.segments[position]
            search_segment(
                segment.arrays,
                segment.passages,
                self._starts[position],
                masks[position],
                queries.indptr,
                queries.term_ids,
                queries.weights,
                bounds[0],
                bounds[1],
                costs,
                scratch.accumulators,
                scratch.bounds,
                scratch.dense_query,
                heaps.scores,
                heaps.passages,
                heaps.filled,
                heaps.touched,
            )

    def _masks(self, allowed: PassageFilter | None) -> list[Mask | None]:
        """Return for each segment the mask of the passages that are not deleted and pass the filter, None for all."""
        if allowed is None:
            return list(self.allowed)
        masks = []
        for segment, first, live in zip(self.segments, self.first_passages.tolist(), self.allowed, strict=True):
            chosen = allowed.mask(first, segment.passages)
            masks.append(live if chosen is None else chosen if live is None else live & chosen)
        return masks

    def _spread(self, run: Callable[[_Scratch, Any], None], tasks: Sequence[Any]) -> None:
        """Run every task on one of the threads, each on the next that is free."""
        threads = min(self.threads, len(tasks))
        following = itertools.count()

        def work(_: int) -> None:
            with self._scratch() as scratch:
                while (number := next(following)) < len(tasks):
                    run(scratch, tasks[number])

        if threads <= 1:
            work(0)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))

    @contextmanager
    def _scratch(self) -> Iterator[_Scratch]:
        """Lend a thread its scratch. After an error it is dropped, since it may not be zero."""
        try:
            scratch = self._scratches.pop()
        except IndexError:
            largest = max(segment.passages for segment in self.segments)
            scratch = _Scratch(
                np.zeros(blocks_of(largest) * BLOCK, dtype=np.float32),
                np.zeros(blocks_of(largest), dtype=np.float32),
                np.zeros(self.vocabulary_size, dtype=np.float32),
            )
        yield scratch
        self._scratches.append(scratch)

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
        with self._scratch() as scratch:
            for position, segment in enumerate(self.segments):
                rows = np.where(owners == position, flat - self.first_passages[position], -1)
                score_pairs(
                    segment.arrays,
                    queries.indptr,
                    queries.term_ids,
                    queries.weights,
                    offsets,
                    rows,
                    scratch.dense_query,
                    result,
                )
        return np.split(result, offsets[1:-1]) if len(queries) else []

    def explain(self, query: SparseBatch, passage: int) -> Explanation:
        """Return what each shared term contributes to the score of a passage (a number) by a query (one row).

        Raises DataError for an unknown number or a query that is not one row over the index's vocabulary.
        """
        self._check_queries(query)
        if len(query) != 1:
            raise DataError(f"one query can be explained at a time, not {len(query)}; select a row")
        return explain(*query.row(0), *self.vectors(np.array([passage])).row(0))

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
        fault = first_fault(queries.term_ids, queries.weights, self.vocabulary_size)
        if fault >= 0 and not 0 <= queries.term_ids[fault] < self.vocabulary_size:
            raise DataError(f"a query has a term id outside the vocabulary of {self.vocabulary_size} terms")
        if fault >= 0:
            raise DataError("query weights must be finite and > 0; the query encoder gave others")


def open_searcher(version: IndexVersion, threads: int = 1) -> Searcher:
    """Return a searcher over a published version; segments are fetched through the local cache and memory-mapped."""
    segments = [Segment(version.fetch(entry)) for entry in version.segments]
    first_passages = [entry.first_passage for entry in version.segments]
    return Searcher(segments, first_passages, threads, [live_mask(version, entry) for entry in version.segments])
