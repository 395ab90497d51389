"""The sparse batch: rows of (term id, weight) in CSR form, the one currency between encoders, index and search."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SparseBatch:
    """Sparse vectors over a vocabulary, one row a text, in CSR form.

    Attributes:
        indptr: int64 [rows + 1]; row r owns the slice indptr[r]:indptr[r + 1] of the other two arrays.
        term_ids: int32 [nnz]; strictly ascending within a row, each in [0, vocabulary_size).
        weights: float32 [nnz]; finite and > 0.
        vocabulary_size: number of columns.
    """

    indptr: NDArray[np.int64]
    term_ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    vocabulary_size: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def nnz(self) -> int:
        """Number of stored (term, weight) pairs over all rows."""
        return int(self.indptr[-1])

    def row(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return (term ids, weights) of one row, as views."""
        start, stop = int(self.indptr[number]), int(self.indptr[number + 1])
        return self.term_ids[start:stop], self.weights[start:stop]

    def lengths(self) -> NDArray[np.int64]:
        """Return the number of non-zero terms (L0) of every row, int64 [rows]."""
        return np.diff(self.indptr)

    def to_dense(self) -> NDArray[np.float32]:
        """Return float32 [rows, vocabulary_size]; for tests and small batches only."""
        dense = np.zeros((len(self), self.vocabulary_size), dtype=np.float32)
        rows = np.repeat(np.arange(len(self)), self.lengths())
        dense[rows, self.term_ids] = self.weights
        return dense

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> SparseBatch:
        """Return the given rows, in the given order."""
        picked = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths()[picked]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        positions = np.repeat(self.indptr[picked] - indptr[:-1], lengths) + np.arange(indptr[-1])
        return SparseBatch(indptr, self.term_ids[positions], self.weights[positions], self.vocabulary_size)

    def heaviest(self, terms: int) -> SparseBatch:
        """Return the rows with the `terms` heaviest of each, at least 1; of equal weights those with lower ids."""
        lengths = self.lengths()
        kept = np.ones(self.nnz, dtype=bool)
        for row in np.flatnonzero(lengths > terms):
            start, stop = self.indptr[row], self.indptr[row + 1]
            weights = self.weights[start:stop]
            lightest = np.partition(weights, -terms)[-terms]
            kept[start:stop] = ~(weights <= lightest)
            room = terms - int(np.count_nonzero(kept[start:stop]))
            kept[start + np.flatnonzero(weights == lightest)[:room]] = True
        if kept.all():
            return self
        indptr = np.concatenate([[0], np.cumsum(kept)])[self.indptr].astype(np.int64)
        return SparseBatch(indptr, self.term_ids[kept], self.weights[kept], self.vocabulary_size)

    def validate(self) -> None:
        """Raise ValueError when an invariant of the class docstring does not hold."""
        if len(self.indptr) == 0 or self.indptr[0] != 0 or np.any(np.diff(self.indptr) < 0):
            raise ValueError("indptr must start at 0 and never decrease")
        if len(self.term_ids) != self.nnz or len(self.weights) != self.nnz:
            raise ValueError(f"indptr ends at {self.nnz}, term_ids has {len(self.term_ids)}, weights {len(self.weights)}")
        if self.nnz == 0:
            return
        if self.term_ids.min() < 0 or self.term_ids.max() >= self.vocabulary_size:
            raise ValueError(f"a term id lies outside [0, {self.vocabulary_size})")
        if not np.all(np.isfinite(self.weights)) or self.weights.min() <= 0:
            raise ValueError("weights must be finite and > 0")
        same_row = np.repeat(np.arange(len(self)), self.lengths())
        ascending = (np.diff(self.term_ids) > 0) | (np.diff(same_row) > 0)
        if not np.all(ascending):
            raise ValueError("term ids must ascend strictly within a row")

    @staticmethod
    def from_dense(dense: NDArray[np.floating]) -> SparseBatch:
        """Keep the positive entries of [rows, vocabulary]."""
        rows, terms = np.nonzero(dense > 0)
        counts = np.bincount(rows, minlength=dense.shape[0])
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return SparseBatch(indptr, terms.astype(np.int32), dense[rows, terms].astype(np.float32), dense.shape[1])

    @staticmethod
    def from_rows(rows: Iterable[dict[int, float]], vocabulary_size: int) -> SparseBatch:
        """Build from one {term id: weight} dictionary a row; weights <= 0 are left out."""
        indptr = [0]
        terms: list[int] = []
        weights: list[float] = []
        for row in rows:
            kept = sorted((term, weight) for term, weight in row.items() if weight > 0)
            terms.extend(term for term, _ in kept)
            weights.extend(weight for _, weight in kept)
            indptr.append(len(terms))
        return SparseBatch(
            np.asarray(indptr, dtype=np.int64),
            np.asarray(terms, dtype=np.int32),
            np.asarray(weights, dtype=np.float32),
            vocabulary_size,
        )

    @staticmethod
    def concatenate(batches: Sequence[SparseBatch]) -> SparseBatch:
        """Stack batches over the same vocabulary; at least one is needed."""
        sizes = {batch.vocabulary_size for batch in batches}
        if len(sizes) != 1:
            raise ValueError(f"cannot stack sparse batches over vocabularies of different sizes: {sorted(sizes)}")
        lengths = np.concatenate([batch.lengths() for batch in batches])
        return SparseBatch(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.concatenate([batch.term_ids for batch in batches]),
            np.concatenate([batch.weights for batch in batches]),
            sizes.pop(),
        )
