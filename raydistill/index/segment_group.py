"""What an actor of a fan-out does: hold some segments of one or more versions of an index, and answer for them.

A request names the version and the segments that it is about, so an answer can never come from another version, and an
actor that was started anew in the place of a dead one needs nobody to tell it what it held. Versions are opened on first
use through the local cache and memory-mapped, so that the actors of a node share their pages. Pure; `fan_out` makes
actors of it.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.encoders.batch import SparseBatch
from raydistill.errors import ResourceError, StorageError
from raydistill.index.compaction import MERGED
from raydistill.index.forward import owning_segments
from raydistill.index.publish import IndexVersion, load_version
from raydistill.index.search import Searcher, open_searcher
from raydistill.index.search_result import SearchResult
from raydistill.index.segment_texts import SegmentTexts
from raydistill.storage.artifacts import Artifact
from raydistill.storage.cache import default_cache
from raydistill.storage.local import LocalStore
from raydistill.storage.store import open_store


@dataclass(frozen=True, slots=True)
class Holding:
    """Some segments of a version; small, picklable.

    Attributes:
        root, name, version: of the index version.
        fingerprint: of the version, so that a version made anew under an old number is noticed.
        segments: positions in the version's list of segments, at least one.
        corpora: where the texts lie, the newest first; empty for none.
    """

    root: str
    name: str
    version: int
    fingerprint: str
    segments: tuple[int, ...]
    corpora: tuple[Artifact, ...] = ()


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage's external id and its text, None where there is none."""

    passage_id: str
    text: str | None


@dataclass(frozen=True)
class _Opened:
    version: IndexVersion
    searcher: Searcher
    texts: SegmentTexts | None


class SegmentGroup:
    """Holds segments of several versions.

    Args:
        threads: compute threads of a search.
        versions: how many stay open; the one used least recently goes first.
    """

    def __init__(self, threads: int, versions: int) -> None:
        self._threads = threads
        self._versions = versions
        self._open: OrderedDict[Holding, _Opened] = OrderedDict()
        self._table = threading.Lock()
        self._opening = threading.Lock()
        self._searches = 0

    def open(self, holding: Holding) -> int:
        """Fetch, verify and map the segments, search once, and return their bytes.

        Raises StorageError when the version is gone, CorruptObjectError when a segment is damaged, ResourceError when the
        local cache cannot hold them.
        """
        opened = self._opened(holding)
        # Compiles the loops and touches the arrays before the first query does.
        first = np.zeros(1, dtype=np.int32)
        one = SparseBatch(np.array([0, 1]), first, np.ones(1, dtype=np.float32), opened.version.vocabulary_size)
        opened.searcher.search(one, 1)
        if opened.texts is not None:
            opened.texts.open()
        return sum(segment.size for segment in opened.version.segments)

    def search(self, holding: Holding, queries: SparseBatch, k: int) -> SearchResult:
        """Return the k best passages among these segments; see `Searcher.search`."""
        found = self._opened(holding).searcher.search(queries, k)
        with self._table:
            self._searches += len(queries)
        return found

    def scores(
        self, holding: Holding, queries: SparseBatch, passages: Sequence[NDArray[np.int64]]
    ) -> list[NDArray[np.float32]]:
        """Return the scores of passages of these segments; see `Searcher.scores`."""
        return self._opened(holding).searcher.scores(queries, passages)

    def vectors(self, holding: Holding, passages: NDArray[np.int64]) -> SparseBatch:
        """Return the vectors of passages of these segments; see `Searcher.vectors`."""
        return self._opened(holding).searcher.vectors(passages)

    def find(self, holding: Holding, passage_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the numbers of passages by id, -1 where these segments have none; see `Searcher.find`."""
        return self._opened(holding).searcher.find(passage_ids)

    def passage_ids(self, holding: Holding, passages: NDArray[np.int64]) -> list[str]:
        """Return the external ids of passages of these segments; see `Searcher.passage_ids`."""
        return self._opened(holding).searcher.passage_ids(passages)

    def hits(self, holding: Holding, passages: NDArray[np.int64]) -> list[Hit]:
        """Return ids and texts of passages of these segments."""
        opened = self._opened(holding)
        ids = opened.searcher.passage_ids(passages)
        texts: list[str | None] = [None] * len(ids)
        if opened.texts is not None:
            segments = opened.version.segments
            first = np.asarray([segment.first_passage for segment in segments], dtype=np.int64)
            ends = first + np.asarray([segment.passages for segment in segments], dtype=np.int64)
            owners = owning_segments(passages, first, ends)
            for owner in np.unique(owners).tolist():
                places = np.flatnonzero(owners == owner).tolist()
                wanted = [ids[place] for place in places]
                found = opened.texts.texts(segments[owner].name, passages[places] - first[owner], wanted)
                for place, text in zip(places, found, strict=True):
                    texts[place] = text
        return [Hit(passage_id, text) for passage_id, text in zip(ids, texts, strict=True)]

    def status(self) -> dict[str, Any]:
        """Return the process id, the numbers of the versions held, and how many queries were searched since it started."""
        with self._table:
            return {
                "pid": os.getpid(),
                "versions": sorted({holding.version for holding in self._open}),
                "queries": self._searches,
            }

    def _opened(self, holding: Holding) -> _Opened:
        found = self._known(holding)
        if found is not None:
            return found
        # One at a time; searches of versions that are open go on meanwhile.
        with self._opening:
            found = self._known(holding)
            if found is None:
                found = _open(holding, self._threads)
                with self._table:
                    self._open[holding] = found
                    while len(self._open) > self._versions:
                        self._open.popitem(last=False)
            return found

    def _known(self, holding: Holding) -> _Opened | None:
        with self._table:
            if holding in self._open:
                self._open.move_to_end(holding)
            return self._open.get(holding)


def _open(holding: Holding, threads: int) -> _Opened:
    whole = load_version(holding.root, holding.name, holding.version)
    if whole.fingerprint != holding.fingerprint:
        raise StorageError(
            f"{whole.uri} is no longer the version that was searched (its fingerprint was {holding.fingerprint[:16]} and is "
            f"{whole.fingerprint[:16]}); was the index deleted and built again? Start the service anew"
        )
    ordered = sorted((whole.segments[position] for position in holding.segments), key=lambda each: each.first_passage)
    segments = tuple(ordered)
    _check_cache(holding.root, sum(segment.size for segment in segments))
    version = dataclasses.replace(whole, segments=segments, passages=sum(segment.passages for segment in segments))
    names = [segment.name for segment in segments]
    texts = SegmentTexts(holding.corpora, names, whole.metadata.get(MERGED, {})) if holding.corpora else None
    return _Opened(version, open_searcher(version, threads), texts)


def corpora_of(version: IndexVersion) -> tuple[Artifact, ...]:
    """Return the committed corpora that hold the texts of an index, the newest first; those that are gone are left out."""
    built = [version.metadata["corpus"]] if "corpus" in version.metadata else []
    addresses = version.metadata.get("corpora", built)
    found = [Artifact(version.root, "corpus", each["name"], each["fingerprint"]) for each in reversed(addresses)]
    return tuple(corpus for corpus in found if corpus.find_manifest() is not None)


def _check_cache(root: str, size: int) -> None:
    """Raise ResourceError when the segments exceed the local cache, which would then fetch them again and again."""
    bound = default_cache().max_bytes
    if not isinstance(open_store(root), LocalStore) and size > bound:
        raise ResourceError(
            f"one actor is to hold segments of {size:,} bytes, but its node's cache holds {bound:,}; raise "
            "RAYDISTILL_CACHE_BYTES, or spread the index over more actors (fan_out.workers.actors)"
        )
