"""Exact search of many queries at once on a GPU, for mining: blocks of forward vectors as CSR matrices times queries.

A block of passages is copied to the device, its impacts as they are stored, and multiplied with slices of the queries as
dense columns; the best of each query are kept on the device. A block is read once for all queries of a call, so large
batches pay.

Results are those of `Searcher.search`, to the bit. The device adds in another order: with u = 2^-24 and a query of L terms,
its score d and the searcher's s differ by at most 2 (L + 1) u s, since all products are positive (and, products below 2^-126
aside, which a device may flush to 0). So k + 64 passages are kept; they contain the true k best whenever the last kept d is
further below the k-th than that bound. The kept ones are scored by the searcher itself. A query whose ranking is too flat
for that, such as one with more than 64 ties at the k-th place, is searched by the searcher.

Device memory: queries_at_a_time * (vocabulary * 4 + passages_at_a_time * 12) bytes and 12 bytes an entry of a block; by
default about 1.1 GB at 30,000 terms and 120 terms a passage (calculated).

It has run on the CPU device only; no GPU was at hand.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from raydistill.encoders.batch import SparseBatch
from raydistill.errors import DataError
from raydistill.index.passage_masks import members
from raydistill.index.search import Searcher
from raydistill.index.search_result import SearchResult
from raydistill.index.segment import Segment

_MARGIN = 64


class DeviceSearcher:
    """Batched search over the segments of a `Searcher` on a torch device.

    Args:
        exact: gives the segments, scores what is kept, and answers what the device cannot decide.
        device: torch device, such as "cuda".
        passages_at_a_time: rows of a block. queries_at_a_time: columns of a product.

    Attributes:
        searched_again: queries so far that `exact` had to search.
    """

    def __init__(
        self, exact: Searcher, device: str, passages_at_a_time: int = 131_072, queries_at_a_time: int = 512
    ) -> None:
        self.exact = exact
        self.searched_again = 0
        self._device = torch.device(device)
        self._rows = passages_at_a_time
        self._columns = queries_at_a_time

    def search(self, queries: SparseBatch, k: int) -> SearchResult:
        """Return what `Searcher.search(queries, k)` returns. Raises DataError for queries over another vocabulary."""
        if queries.vocabulary_size != self.exact.vocabulary_size:
            raise DataError(f"queries are over {queries.vocabulary_size} terms, the index over {self.exact.vocabulary_size}")
        passages = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        if not len(queries) or not self.exact.passages:
            return SearchResult(passages, scores)
        kept_scores, kept = self._kept(queries, k + _MARGIN)
        decided = _is_decided(kept_scores, queries.lengths(), k)
        rows = np.flatnonzero(decided)
        found = [kept[row][kept_scores[row] > 0] for row in rows]
        for row, numbers, exact in zip(rows, found, self.exact.scores(queries.select(rows), found), strict=True):
            best = np.lexsort((numbers, -exact))[:k]
            best = best[exact[best] > 0]
            passages[row, : len(best)], scores[row, : len(best)] = numbers[best], exact[best]
        again = np.flatnonzero(~decided)
        if len(again):
            self.searched_again += len(again)
            result = self.exact.search(queries.select(again), k)
            passages[again], scores[again] = result.passages, result.scores
        return SearchResult(passages, scores)

    @torch.inference_mode()
    def _kept(self, queries: SparseBatch, depth: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the device's best scores of each query, float32 [B, depth] descending, 0 where there is none, and whose."""
        best = torch.zeros((len(queries), depth), dtype=torch.float32, device=self._device)
        numbers = torch.full((len(queries), depth), -1, dtype=torch.int64, device=self._device)
        firsts = self.exact.first_passages.tolist()
        for segment, first, live in zip(self.exact.segments, firsts, self.exact.allowed, strict=True):
            for start in range(0, segment.passages, self._rows):
                stop = min(start + self._rows, segment.passages)
                block = self._block(segment, start, stop)
                numbered = np.arange(start, stop)
                gone = None if live is None else torch.from_numpy(~members(live, numbered)).to(self._device)
                for column in range(0, len(queries), self._columns):
                    slot = slice(column, column + self._columns)
                    product = block @ self._dense(queries, column)
                    if gone is not None:
                        product[gone] = 0.0
                    top, places = product.t().topk(min(depth, stop - start), dim=1)
                    joined = torch.cat([best[slot], top], dim=1)
                    known = torch.cat([numbers[slot], places + (first + start)], dim=1)
                    best[slot], order = joined.topk(depth, dim=1)
                    numbers[slot] = known.gather(1, order)
        return best.cpu().numpy(), numbers.cpu().numpy()

    def _block(self, segment: Segment, start: int, stop: int) -> torch.Tensor:
        """Return passages start..stop - 1 as a CSR matrix [passages, V] on the device."""
        offsets = segment.row_offsets[start : stop + 1]
        entries = slice(int(offsets[0]), int(offsets[-1]))
        terms = segment.terms(np.arange(start, stop), np.arange(entries.start, entries.stop))
        columns = torch.from_numpy(terms).to(self._device)
        # A copy: the array is a read-only map.
        impacts = torch.from_numpy(np.array(segment.impacts[entries])).to(self._device).to(torch.float32)
        if segment.impact_type == "u8":
            impacts *= segment.scale
        rows = torch.from_numpy((offsets - offsets[0]).astype(np.int32)).to(self._device)
        size = (stop - start, segment.vocabulary_size)
        return torch.sparse_csr_tensor(rows, columns, impacts, size, check_invariants=False)

    def _dense(self, queries: SparseBatch, column: int) -> torch.Tensor:
        """Return a slice of the queries as float32 [V, columns] on the device."""
        chosen = queries.select(np.arange(column, min(column + self._columns, len(queries))))
        dense = torch.zeros((queries.vocabulary_size, len(chosen)), dtype=torch.float32, device=self._device)
        columns = np.repeat(np.arange(len(chosen)), chosen.lengths())
        places = (torch.from_numpy(chosen.term_ids.astype(np.int64)), torch.from_numpy(columns))
        dense[places[0].to(self._device), places[1].to(self._device)] = torch.from_numpy(chosen.weights).to(self._device)
        return dense


def _is_decided(kept: NDArray[np.float32], terms: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Return for which queries the true k best are certainly among the kept ones, bool [B].

    Args:
        kept: float32 [B, depth]; the device's best scores, descending. terms: int64 [B]; of each query.
    """
    bound = 2.0 * (terms + 2) * 2.0**-24
    last, at_k = kept[:, -1].astype(np.float64), kept[:, k - 1].astype(np.float64)
    return (last == 0) | (last / (1 - bound) < at_k / (1 + bound))
