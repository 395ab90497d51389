"""An index spread over Ray actors that search it as one: same results as `search.Searcher` over all its segments.

Ray places the actors over the nodes, starts a dead one anew (on another node where its own is gone) and sends again what
was asked of it. Every request names the version it is about (see `segment_group`), so a fan-out can load a new version
beside the one that is searched and then switch by one assignment: what is in flight ends on the version it began with.

Memory: an actor maps its segments; the page cache of a node is shared by all its actors. Answers are k passages a query
and group. A new version takes no further process and no further CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.actor_pool import require_resources
from raydistill.config import FanOutConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import DataError
from raydistill.index.fan_out_actors import Actors, Call, shared
from raydistill.index.fan_out_plan import assigned_groups
from raydistill.index.forward import owning_segments
from raydistill.index.publish import IndexVersion, current_version
from raydistill.index.search_result import SearchResult, merged
from raydistill.index.segment_group import Hit, Holding, corpora_of
from raydistill.storage.artifacts import Artifact

_INLINE_BYTES = 64 * 1024
"""Queries above this size go to the object store once instead of along with every call."""


@dataclass(frozen=True)
class GroupHealth:
    """How an actor of a fan-out is.

    Attributes:
        group: its number.
        serving: whether it answered; one that is being started anew did not.
        node, pid: where it runs; "" and 0 when it did not answer.
        versions: numbers of the index versions that it has mapped.
        segments, bytes: what it is to hold of the current version.
        queries: searched since it was started.
    """

    group: int
    serving: bool
    node: str
    pid: int
    versions: tuple[int, ...]
    segments: int
    bytes: int
    queries: int


class Snapshot:
    """One version of an index as its fan-out holds it: what it answers never changes. Any number of threads may ask.

    The methods are those of `raydistill.index.search.Searcher`, with equal results.
    """

    def __init__(self, version: IndexVersion, groups: Sequence[int], corpora: tuple[Artifact, ...], actors: Actors) -> None:
        """Args: groups: number of the group of each of the version's segments."""
        self.version = version
        self.groups = tuple(groups)
        self.has_texts = bool(corpora)
        self._actors = actors
        segments = {group: tuple(np.flatnonzero(np.equal(groups, group)).tolist()) for group in sorted(set(groups))}
        address = (version.root, version.name, version.version, version.fingerprint)
        self._holdings = {group: Holding(*address, held, corpora) for group, held in segments.items()}
        order = sorted(range(len(version.segments)), key=lambda position: version.segments[position].first_passage)
        entries = [version.segments[position] for position in order]
        self._first = np.asarray([entry.first_passage for entry in entries], dtype=np.int64)
        self._ends = self._first + np.asarray([entry.passages for entry in entries], dtype=np.int64)
        self._owning = np.asarray([groups[position] for position in order], dtype=np.int64)
        self._timeout_s = actors.timeout_s

    @property
    def passages(self) -> int:
        """Number of passages."""
        return self.version.passages

    @property
    def vocabulary_size(self) -> int:
        """Number of terms."""
        return self.version.vocabulary_size

    def search(self, queries: SparseBatch, k: int) -> SearchResult:
        """Return the k best passages of each query, equal to the bit to `Searcher.search` over all segments."""
        if k < 1:
            raise DataError(f"k is {k}; ask for at least one passage")
        sent: Any = queries
        if len(self._holdings) > 1 and queries.term_ids.nbytes + queries.weights.nbytes > _INLINE_BYTES:
            sent = shared(queries)
        return merged(self._ask("search", sent, k), k)

    def scores(self, queries: SparseBatch, passages: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Return the score of every given passage by its query; see `Searcher.scores`."""
        numbers = [np.asarray(of_query, dtype=np.int64) for of_query in passages]
        owners = [self._owners(of_query) for of_query in numbers]
        result = [np.zeros(len(of_query), dtype=np.float32) for of_query in numbers]
        calls = []
        for group, holding in self._holdings.items():
            asked = [of_query[held == group] for of_query, held in zip(numbers, owners, strict=True)]
            calls.append(Call(group, "scores", (holding, queries, asked), self._timeout_s))
        for group, answer in zip(self._holdings, self._actors.ask(calls), strict=True):
            for scores, held, found in zip(result, owners, answer, strict=True):
                scores[held == group] = found
        return result

    def vectors(self, passages: NDArray[np.int64]) -> SparseBatch:
        """Return the stored vectors of passages; see `Searcher.vectors`."""
        numbers = np.asarray(passages, dtype=np.int64)
        if not len(numbers):
            return SparseBatch.from_rows([], self.vocabulary_size)
        places, answers = self._by_owner("vectors", numbers)
        order = np.argsort(np.concatenate(places), kind="stable")
        return SparseBatch.concatenate(answers).select(order)

    def hits(self, passages: NDArray[np.int64]) -> list[Hit]:
        """Return ids and texts of passages (int64 [C]), in the given order."""
        return self._in_order("hits", np.asarray(passages, dtype=np.int64))

    def passage_ids(self, passages: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Return the external ids of passages, in the given order."""
        return self._in_order("passage_ids", np.asarray(passages, dtype=np.int64))

    def find(self, passage_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return passage numbers by external id, -1 where unknown; of several the lowest. See `Searcher.find`."""
        unknown = np.iinfo(np.int64).max
        found = [np.where(answer < 0, unknown, answer) for answer in self._ask("find", list(passage_ids))]
        lowest = np.min(np.stack(found), axis=0)
        return np.where(lowest == unknown, np.int64(-1), lowest)

    def open(self) -> None:
        """Have every actor fetch, verify and map its segments, and answer a first search."""
        self._ask("open", timeout_s=self._actors.open_timeout_s)

    def _ask(self, method: str, *arguments: Any, timeout_s: float | None = None) -> list[Any]:
        """Ask all groups the same."""
        wait = self._timeout_s if timeout_s is None else timeout_s
        return self._actors.ask(
            [Call(group, method, (holding, *arguments), wait) for group, holding in self._holdings.items()]
        )

    def _in_order(self, method: str, numbers: NDArray[np.int64]) -> list[Any]:
        """Return what the owners answer about each passage, in the given order."""
        places, answers = self._by_owner(method, numbers)
        found: dict[int, Any] = {}
        for where, answer in zip(places, answers, strict=True):
            found.update(zip(where.tolist(), answer, strict=True))
        return [found[place] for place in range(len(numbers))]

    def _by_owner(self, method: str, numbers: NDArray[np.int64]) -> tuple[list[NDArray[np.int64]], list[Any]]:
        """Ask each group about its own of the passages; return their places and the answers, group by group."""
        owners = self._owners(numbers)
        asked = [group for group in self._holdings if np.any(owners == group)]
        places = [np.flatnonzero(owners == group) for group in asked]
        calls = [
            Call(group, method, (self._holdings[group], numbers[where]), self._timeout_s)
            for group, where in zip(asked, places, strict=True)
        ]
        return places, self._actors.ask(calls)

    def _owners(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        owners: NDArray[np.int64] = self._owning[owning_segments(numbers, self._first, self._ends)]
        return owners


class FanOut:
    """An index held by actors, at one version at a time. Any number of threads may search while another refreshes it.

    Args:
        version: what to search first.
        config: actors, retries, time limits.
        name: None makes actors that end with this object's process. With a name the actors are found again by it: every
            fan-out of this name in the cluster shares them, and they stay until `end_named`.

    Raises:
        ResourceError: the cluster can never hold the actors, or a node's cache never their segments.
        StorageError: a segment is missing or damaged.
    """

    def __init__(self, version: IndexVersion, config: FanOutConfig, name: str | None = None) -> None:
        require_resources(config.workers, "fan_out")
        self._config = config
        self._named = name is not None
        self._actors = Actors(config, name)
        self._refreshing = threading.Lock()
        self._snapshot = self._opened(version)

    @property
    def snapshot(self) -> Snapshot:
        """The version that is searched now; it stays what it is when the fan-out switches to another."""
        return self._snapshot

    @property
    def version(self) -> IndexVersion:
        """The version that is searched now."""
        return self._snapshot.version

    def search(self, queries: SparseBatch, k: int) -> SearchResult:
        """Search the present version; see `Snapshot.search`."""
        return self._snapshot.search(queries, k)

    def refresh(self, version: IndexVersion | None = None) -> bool:
        """Load another version beside the present one, then switch to it; True when the version changed.

        Searches go on meanwhile, and those in flight end on the version they began with. When this raises, the present
        version stays.

        Args:
            version: what to switch to; None takes the index's current version, which may also be an older one that was
                made current again.
        """
        with self._refreshing:
            present = self.version
            wanted = version or current_version(present.root, present.name)
            if (wanted.version, wanted.fingerprint) == (present.version, present.fingerprint):
                return False
            self._snapshot = self._opened(wanted)
            return True

    def health(self) -> list[GroupHealth]:
        """Return how every actor is; asks them all, and waits some seconds for those that do not answer."""
        snapshot = self._snapshot
        found = []
        for group, status in enumerate(self._actors.statuses()):
            held = [entry for entry, owner in zip(snapshot.version.segments, snapshot.groups, strict=True) if owner == group]
            said = status or {"node": "", "pid": 0, "versions": (), "queries": 0}
            found.append(
                GroupHealth(
                    group=group,
                    serving=status is not None,
                    node=said["node"],
                    pid=said["pid"],
                    versions=tuple(said["versions"]),
                    segments=len(held),
                    bytes=sum(entry.size for entry in held),
                    queries=said["queries"],
                )
            )
        return found

    def close(self) -> None:
        """End the actors, unless they are shared by name."""
        if not self._named:
            self._actors.end()

    def _opened(self, version: IndexVersion) -> Snapshot:
        if not version.segments:
            raise DataError(f"{version.uri} has no segments and cannot be searched; build it from a corpus with passages")
        segments = [(entry.sha256, entry.size) for entry in version.segments]
        groups = assigned_groups(segments, len(self._actors))
        corpora = corpora_of(version) if self._config.texts else ()
        snapshot = Snapshot(version, groups, corpora, self._actors)
        snapshot.open()
        return snapshot
