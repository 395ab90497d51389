"""The training stream: mined candidates read part by part, in an order that depends on nothing but seed and position.

The stream is endless: position p is query p mod N of epoch p div N. Parts are shuffled globally, the queries of a group
of neighbouring parts (at most `shuffle_buffer` queries) are shuffled together. Memory: the rows of one group, at about
(8 + 4 T) bytes a candidate for T teachers. Document vectors are joined from the index, never encoded again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydistill.config import SamplingConfig
from raydistill.distill.sampling import draw, generator
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import TrainingError
from raydistill.index.search import Searcher
from raydistill.storage.artifacts import Artifact, Part
from raydistill.teachers.combine import Combination, combine

_COLUMNS = ["query_id", "depth", "question", "history", "gold", "passages", "scores"]
T = TypeVar("T")


@dataclass(frozen=True)
class MinedQuery:
    """One query with its candidates.

    Attributes:
        query_id, depth, question: of the turn. history: (question, answer) of earlier turns, oldest first.
        gold: int64 [G] passage numbers. passages: int64 [C] passage numbers.
        scores: float32 [T, C]; NaN rows for teachers without a rewrite.
    """

    query_id: str
    depth: int
    question: str
    history: tuple[tuple[str, str], ...]
    gold: NDArray[np.int64]
    passages: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class StepBatch:
    """One global batch of B queries, K places a query, P sampled passages in all, in the order of the places.

    Attributes:
        queries: the B queries.
        documents: P sparse passage vectors.
        place: int64 [B, K]; row of `documents` for each place, 0 where `present` is False.
        teacher: float32 [B, K]; combined teacher scores, 0 where absent.
        present: bool [B, K].
        gold: int64 [B]; row of `documents` that holds the query's gold, -1 for none.
        excluded: bool [B, P]; documents that are golds of the query, whoever drew them.
        epoch: epoch of the batch's first query.
    """

    queries: tuple[MinedQuery, ...]
    documents: SparseBatch
    place: NDArray[np.int64]
    teacher: NDArray[np.float32]
    present: NDArray[np.bool_]
    gold: NDArray[np.int64]
    excluded: NDArray[np.bool_]
    epoch: int


class CandidateStream:
    """Global batches of mined queries from any position on."""

    def __init__(
        self,
        candidates: Artifact,
        searcher: Searcher,
        sampling: SamplingConfig,
        combination: Combination,
        global_batch: int,
        seed: int,
        shuffle_buffer: int,
    ) -> None:
        self._artifact = candidates
        self._searcher = searcher
        self._sampling = sampling
        self._combination = combination
        self._global_batch = global_batch
        self._seed = seed
        self._buffer = shuffle_buffer
        self._parts = tuple(part for part in candidates.manifest().parts if part.rows > 0)
        self.queries = sum(part.rows for part in self._parts)
        """Number of queries in an epoch."""
        if self.queries == 0:
            raise TrainingError(f"{candidates.uri} holds no query with candidates: there is nothing to train on")

    def steps(self, epochs: float) -> int:
        """Return the number of optimizer steps in which every query is visited `epochs` times (rounded up)."""
        return max(1, int(np.ceil(epochs * self.queries / self._global_batch)))

    def batches(self, first_step: int) -> Iterator[StepBatch]:
        """Yield the global batches from an optimizer step on, for ever."""
        rows = self._rows(first_step * self._global_batch)
        while True:
            yield self._batch([next(rows) for _ in range(self._global_batch)])

    def sample_queries(self, number: int) -> list[MinedQuery]:
        """Return the first queries of the first epoch, for calibration."""
        rows = self._rows(0)
        return [next(rows)[1] for _ in range(min(number, self.queries))]

    def _rows(self, position: int) -> Iterator[tuple[int, MinedQuery]]:
        epoch, skip = divmod(position, self.queries)
        while True:
            for number, group in enumerate(self._groups(epoch)):
                size = sum(part.rows for part in group)
                if skip >= size:
                    skip -= size
                    continue
                table = pa.concat_tables([self._read(part) for part in group])
                for row in generator(self._seed, epoch, f"group {number}").permutation(size)[skip:]:
                    yield epoch, _mined_query(table, int(row))
                skip = 0
            epoch += 1

    def _groups(self, epoch: int) -> list[list[Part]]:
        """Shuffle the parts and put neighbours together as long as they fit the buffer."""
        groups: list[list[Part]] = [[]]
        size = 0
        for number in generator(self._seed, epoch, "parts").permutation(len(self._parts)):
            part = self._parts[number]
            if groups[-1] and size + part.rows > self._buffer:
                groups.append([])
                size = 0
            groups[-1].append(part)
            size += part.rows
        return groups

    def _read(self, part: Part) -> pa.Table:
        return pq.read_table(self._artifact.fetch(part), columns=_COLUMNS)

    def _batch(self, rows: Sequence[tuple[int, MinedQuery]]) -> StepBatch:
        size, places = len(rows), self._sampling.passages
        place = np.zeros((size, places), dtype=np.int64)
        teacher = np.zeros((size, places), dtype=np.float32)
        present = np.zeros((size, places), dtype=bool)
        gold = np.full(size, -1, dtype=np.int64)
        numbers: list[NDArray[np.int64]] = []
        filled = 0
        for row, (epoch, query) in enumerate(rows):
            combined = combine(query.scores, self._combination).astype(np.float32)
            usable = np.flatnonzero(np.isfinite(combined))
            golds = np.flatnonzero(np.isin(query.passages[usable], query.gold))
            sample = draw(combined[usable], golds, self._sampling, self._seed, epoch, query.query_id)
            positions = usable[sample.positions]
            drawn = len(positions)
            place[row, :drawn] = filled + np.arange(drawn)
            teacher[row, :drawn] = combined[positions]
            present[row, :drawn] = True
            if sample.gold >= 0:
                gold[row] = filled + sample.gold
            numbers.append(query.passages[positions])
            filled += drawn
        passages = np.concatenate(numbers)
        excluded = np.stack([np.isin(passages, query.gold) for _, query in rows])
        return StepBatch(
            queries=tuple(query for _, query in rows),
            documents=self._searcher.vectors(passages),
            place=place,
            teacher=teacher,
            present=present,
            gold=gold,
            excluded=excluded,
            epoch=rows[0][0],
        )


def _mined_query(table: pa.Table, row: int) -> MinedQuery:
    values = {name: table.column(name)[row] for name in _COLUMNS}
    passages = _array(values["passages"], np.int64)
    scores = [
        np.full(len(passages), np.nan, dtype=np.float32) if not teacher.is_valid else _array(teacher, np.float32)
        for teacher in values["scores"]
    ]
    return MinedQuery(
        query_id=values["query_id"].as_py(),
        depth=values["depth"].as_py(),
        question=values["question"].as_py(),
        history=tuple((turn["question"], turn["answer"]) for turn in values["history"].as_py()),
        gold=_array(values["gold"], np.int64),
        passages=passages,
        scores=np.stack(scores),
    )


def _array(scalar: Any, dtype: type) -> NDArray[Any]:
    """Return a list scalar as an array; absent entries become NaN in floating-point arrays."""
    return np.asarray(scalar.values.to_numpy(zero_copy_only=False), dtype=dtype)


class Prefetch(Generic[T]):
    """An iterator that works ahead in a thread, so that training does not wait for reading and joining."""

    def __init__(self, source: Callable[[], Iterator[T]], ahead: int = 2) -> None:
        self._queue: queue.Queue[T | BaseException] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(source,), daemon=True)
        self._thread.start()

    def _fill(self, source: Callable[[], Iterator[T]]) -> None:
        try:
            for item in source():
                if not self._put(item):
                    return
        except BaseException as error:  # handed to the consumer, which raises it
            self._put(error)

    def _put(self, item: T | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop working ahead and wait for the thread."""
        self._stop.set()
        self._thread.join()
