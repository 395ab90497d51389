"""Seismic indexes of our segments: building one, and searching several as one collection with exact scores.

Seismic (Bruch et al., SIGIR 2024, arXiv 2404.18812) is the library pyseismic-lsr: `pip install raydistill[seismic]`. It
gets passages as numbers, through a file in its own input format: uint32 passages, then for each of them uint32 terms, as
many uint32 term ids, as many float32 weights, little-endian. Its index files are its own and opaque to us (a serialised
Rust structure, readable by the same version of the library); we only store and hash them.

The library holds the vectors as float16 and finds candidates; their scores are then computed from the segments, so that a
passage has the same score here and in the exact search.

Memory: building, the library holds a segment's vectors (4 bytes an entry, 6 over more than 65,536 terms) and its index;
searching, every file of the index whole, about as large as it is on disk.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.config import SeismicBuildConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import ConfigError, DataError
from raydistill.index.search import Searcher
from raydistill.index.search_result import SearchResult
from raydistill.storage.artifacts import Artifact

SUFFIX = ".seismic"
_LARGEST_SMALL_VOCABULARY = 65_536


def seismic_library() -> Any:
    """Return the library's module. Raises ConfigError where it is not installed."""
    try:
        return import_module("seismic")
    except ImportError as error:
        raise ConfigError(
            f"approximate search needs the library pyseismic-lsr ({error}); pip install 'raydistill[seismic]' on every node"
        ) from None


def write_input(path: Path, batches: Iterable[SparseBatch], passages: int) -> int:
    """Write vectors in Seismic's input format and return their entries; one batch is in memory.

    Raises DataError when the batches do not hold `passages` rows.
    """
    written = entries = 0
    with path.open("wb") as file:
        np.array([passages], dtype="<u4").tofile(file)
        for batch in batches:
            lengths = batch.lengths()
            words = np.empty(len(batch) + 2 * batch.nnz, dtype="<u4")
            starts = 2 * batch.indptr[:-1] + np.arange(len(batch))
            words[starts] = lengths
            # Entry e of row r: its term stands e words after the length, its weight as many words further as r has terms.
            places = np.repeat(starts + 1 - batch.indptr[:-1], lengths) + np.arange(batch.nnz)
            words[places] = batch.term_ids
            words[places + np.repeat(lengths, lengths)] = batch.weights.astype("<f4").view("<u4")
            words.tofile(file)
            written, entries = written + len(batch), entries + batch.nnz
    if written != passages:
        raise DataError(f"{path.name} should hold {passages} passages, and {written} came; the index is inconsistent")
    return entries


def build_seismic(source: Path, target: Path, vocabulary_size: int, config: SeismicBuildConfig) -> None:
    """Build the index of a file in Seismic's input format. Raises ConfigError where the library is not installed."""
    kind = _index_class(vocabulary_size)
    with _quiet():
        index = kind.build(str(source), **config.model_dump())
        index.save(str(target))


def _index_class(vocabulary_size: int) -> Any:
    library = seismic_library()
    return library.SeismicIndexRaw if vocabulary_size <= _LARGEST_SMALL_VOCABULARY else library.SeismicIndexRawLV


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's progress, which it prints to the process's standard output, out of ours."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


class SeismicSearcher:
    """Approximate search over the segments of a `Searcher`.

    Args:
        exact: over the same segments; it scores what is found.
        paths: one Seismic index a segment of `exact`, in its order; None for a segment without any term.
        query_cut: heaviest terms of a query that are looked up.
        heap_factor: clusters whose bound is below the k-th score / heap_factor are skipped.
    """

    def __init__(self, exact: Searcher, paths: Sequence[Path | None], query_cut: int, heap_factor: float) -> None:
        if len(paths) != len(exact.segments):
            raise DataError(f"{len(paths)} Seismic indexes for {len(exact.segments)} segments; build the index anew")
        kind = _index_class(exact.vocabulary_size)
        self.exact = exact
        self.query_cut = query_cut
        self.heap_factor = heap_factor
        with _quiet():
            self._indexes = [None if path is None else kind.load(str(path)) for path in paths]

    def search(self, queries: SparseBatch, k: int) -> SearchResult:
        """Return k passages a query, best first, with their exact scores; some of the true k best may be missing.

        Passages with score 0 are not returned. Of equal scores the lower passage number comes first.
        """
        passages = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        found = [self._candidates(*queries.row(row), k) for row in range(len(queries))]
        for row, exact in enumerate(self.exact.scores(queries, found)):
            best = np.lexsort((found[row], -exact))[:k]
            best = best[exact[best] > 0]
            passages[row, : len(best)] = found[row][best]
            scores[row, : len(best)] = exact[best]
        return SearchResult(passages, scores)

    def _candidates(self, terms: NDArray[np.int32], weights: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        numbers: list[int] = []
        for index, first in zip(self._indexes, self.exact.first_passages.tolist(), strict=True):
            if index is None:
                continue
            # The library panics at terms beyond the largest of its passages.
            known = terms < index.dim
            if not known.any():
                continue
            hits = index.search(
                np.ascontiguousarray(terms[known]),
                np.ascontiguousarray(weights[known]),
                k,
                self.query_cut,
                self.heap_factor,
                0,
                True,
            )
            numbers += [first + number for _, number in hits]
        return np.asarray(numbers, dtype=np.int64)


def open_approximate(artifact: Artifact, exact: Searcher, query_cut: int, heap_factor: float) -> SeismicSearcher:
    """Return a searcher of a committed Seismic index; `exact` is the searcher of the version that it was built from."""
    parts = artifact.manifest().parts
    return SeismicSearcher(exact, [artifact.fetch(part) if part.size else None for part in parts], query_cut, heap_factor)
