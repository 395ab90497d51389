"""The training stream: mined candidates read part by part, in an order that depends on nothing but seed and position.

The stream is endless: position p is query p mod N of epoch p div N, so every query is visited once an epoch and the
batch in which an epoch ends is filled up by the next. Parts are shuffled globally, the queries of a group of
neighbouring parts (at most `shuffle_buffer` queries, or one part) locally; see `ordering` for batches of a kind.
Memory: the rows of one group, at about (8 + 4 T) bytes a candidate for T teachers and their rewrites where those are read,
twice while a group is read; and the batches that are prefetched.
Document vectors are joined from the index, never encoded again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydistill.config import SamplingConfig
from raydistill.distill.mined import COLUMNS, REWRITES, SOURCE, STUDENT_BEST, MinedQuery, MinedTable
from raydistill.distill.ordering import by_depth, by_source, cut_into_batches
from raydistill.distill.sampling import draw, generator
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import TrainingError
from raydistill.storage.artifacts import Artifact, Part
from raydistill.teachers.combine import Combiner


class PassageVectors(Protocol):
    """Where document vectors come from: `index.forward.ForwardVectors`, or a whole `index.search.Searcher`."""

    vocabulary_size: int

    def vectors(self, passages: NDArray[np.int64]) -> SparseBatch:
        """Return the stored vectors of passages (int64 [C], any order, repeats allowed)."""


@dataclass(frozen=True)
class StepBatch:
    """One global batch of B queries, K places a query, T teachers, P sampled passages in all, in the order of the places.

    Attributes:
        queries: the B queries.
        documents: P sparse passage vectors.
        place: int64 [B, K]; row of `documents` for each place, 0 where `present` is False.
        teacher: float32 [B, K]; combined teacher scores, 0 where absent.
        teachers: float32 [B, T, K]; each teacher's own scores, NaN where absent.
        present: bool [B, K]; the place holds a passage, with a combined teacher score.
        positive: bool [B, K]; the place holds a gold passage of its query.
        log_weight: float32 [B, K]; log of the inverse inclusion probability under the importance policy, else 0.
        gold: int64 [B]; row of `documents` that holds the query's first gold, -1 for none.
        excluded: bool [B, P]; documents that are golds of the query, whoever drew them.
        depth: int64 [B]; turn depth, from 1.
        rewrites: B sparse vectors in the document space, the mean of the teachers' rewrites; a row is empty where no teacher
            has one, and all are where the stream was not asked for rewrites.
        epoch: epoch of the batch's first query.
    """

    queries: tuple[MinedQuery, ...]
    documents: SparseBatch
    place: NDArray[np.int64]
    teacher: NDArray[np.float32]
    teachers: NDArray[np.float32]
    present: NDArray[np.bool_]
    positive: NDArray[np.bool_]
    log_weight: NDArray[np.float32]
    gold: NDArray[np.int64]
    excluded: NDArray[np.bool_]
    depth: NDArray[np.int64]
    rewrites: SparseBatch
    epoch: int


class CandidateStream:
    """Global batches of mined queries from any position on.

    Args:
        candidates: what mining made. vectors: the index it was mined from.
        sampling: which candidates enter a step and which queries a batch.
        combination: how the teachers' scores of a passage become one.
        global_batch: queries a batch. seed: of order and draws. shuffle_buffer: see the module.
        with_rewrites: read the rewrites' vectors too.

    Raises TrainingError when there is nothing to train on.
    """

    def __init__(
        self,
        candidates: Artifact,
        vectors: PassageVectors,
        sampling: SamplingConfig,
        combination: Combiner,
        global_batch: int,
        seed: int,
        shuffle_buffer: int,
        with_rewrites: bool = False,
    ) -> None:
        self._artifact = candidates
        self._vectors = vectors
        self._columns = [*COLUMNS, *([SOURCE] if sampling.batches == "source" else [])]
        self._columns += REWRITES if with_rewrites else []
        self._columns += [STUDENT_BEST] if sampling.student_top else []
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

    def batches(self, first_step: int, every: int = 1) -> Iterator[StepBatch]:
        """Yield the global batches from an optimizer step on, for ever; of `every` steps the first."""
        rows = self._rows(first_step * self._global_batch)
        while True:
            yield self._batch([(epoch, table.query(row)) for epoch, table, row in islice(rows, self._global_batch)])
            deque(islice(rows, (every - 1) * self._global_batch), maxlen=0)  # passed over, and no table held

    def sample_queries(self, number: int) -> list[MinedQuery]:
        """Return `number` queries at random (all, where there are fewer), for calibration; always the same ones."""
        found: list[MinedQuery] = []
        for group in self._groups(0):
            table = self._table(group)
            for row in generator(self._seed, 0, "sample").permutation(len(table))[: number - len(found)]:
                found.append(table.query(int(row)))
            if len(found) == number:
                break
        return found

    def _rows(self, position: int) -> Iterator[tuple[int, MinedTable, int]]:
        """Yield (epoch, table, row) of every query from a position on."""
        epoch, skip = divmod(position, self.queries)
        while True:
            start = epoch * self.queries
            for number, group in enumerate(self._groups(epoch)):
                size = sum(part.rows for part in group)
                if skip < size:
                    table = self._table(group)
                    for row in self._order(table, start, generator(self._seed, epoch, f"group {number}"))[skip:]:
                        yield epoch, table, int(row)
                    del table  # before the next one is read
                start += size
                skip = max(0, skip - size)
            epoch += 1

    def _order(self, table: MinedTable, position: int, random: np.random.Generator) -> NDArray[np.int64]:
        """Return the order of a group's rows, int64 [rows]; `position` is that of its first row in the stream."""
        if self._sampling.batches == "mixed":
            return random.permutation(len(table))
        if self._sampling.batches == "depth":
            ordered = by_depth(table.depths, table.text_lengths(), random)
        else:
            ordered = by_source(table.sources(), random)
        return cut_into_batches(ordered, position, self._global_batch, random)

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

    def _table(self, group: Sequence[Part]) -> MinedTable:
        # Not pq.read_table, which loads Arrow's data sets and pandas: 40 MB more in every training worker.
        files = [pq.ParquetFile(self._artifact.fetch(part)) for part in group]
        return MinedTable(pa.concat_tables([file.read(self._columns) for file in files]))

    def _batch(self, rows: Sequence[tuple[int, MinedQuery]]) -> StepBatch:
        size, places, teachers = len(rows), self._sampling.passages, len(rows[0][1].scores)
        place = np.zeros((size, places), dtype=np.int64)
        combined = np.zeros((size, places), dtype=np.float32)
        each = np.full((size, teachers, places), np.nan, dtype=np.float32)
        present = np.zeros((size, places), dtype=bool)
        positive = np.zeros((size, places), dtype=bool)
        log_weight = np.zeros((size, places), dtype=np.float32)
        gold = np.full(size, -1, dtype=np.int64)
        numbers: list[NDArray[np.int64]] = []
        filled = 0
        for row, (epoch, query) in enumerate(rows):
            is_gold = np.zeros(len(query.passages), dtype=bool)
            is_gold[_positions_in(query.passages, query.gold)] = True
            scores = self._combination(query.scores, is_gold).astype(np.float32)
            usable = np.flatnonzero(np.isfinite(scores))
            golds = np.flatnonzero(is_gold[usable])
            liked = _positions_in(query.passages[usable], query.student_best)
            sample = draw(scores[usable], golds, self._sampling, self._seed, epoch, query.query_id, liked)
            positions = usable[sample.positions]
            drawn = len(positions)
            place[row, :drawn] = filled + np.arange(drawn)
            combined[row, :drawn] = scores[positions]
            each[row, :, :drawn] = query.scores[:, positions]
            present[row, :drawn] = True
            positive[row, :drawn] = sample.positive
            log_weight[row, :drawn] = sample.log_weight
            if sample.positive.any():
                gold[row] = filled + int(sample.positive.argmax())
            numbers.append(query.passages[positions])
            filled += drawn
        passages = np.concatenate(numbers)
        return StepBatch(
            queries=tuple(query for _, query in rows),
            documents=self._vectors.vectors(passages),
            place=place,
            teacher=combined,
            teachers=each,
            present=present,
            positive=positive,
            log_weight=log_weight,
            gold=gold,
            excluded=occurrences(passages, [query.gold for _, query in rows]),
            depth=np.asarray([query.depth for _, query in rows], dtype=np.int64),
            rewrites=_stacked([query.rewrite for _, query in rows], self._vectors.vocabulary_size),
            epoch=rows[0][0],
        )


def _positions_in(passages: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where wanted passages stand in ascending ones, in their own order; those that do not are left out."""
    places = np.searchsorted(passages, wanted)
    held = places < len(passages)
    held[held] = passages[places[held]] == wanted[held]
    return places[held]


def occurrences(passages: NDArray[np.int64], wanted: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
    """Return bool [len(wanted), P]: which of the passages (any order, repeats allowed) are among each of the wanted ones."""
    order = np.argsort(passages, kind="stable")
    ordered = passages[order]
    found = np.zeros((len(wanted), len(passages)), dtype=bool)
    of_row = np.repeat(np.arange(len(wanted)), [len(each) for each in wanted])
    every = np.concatenate(wanted)
    starts, stops = np.searchsorted(ordered, every, side="left"), np.searchsorted(ordered, every, side="right")
    for pair in np.flatnonzero(stops > starts):
        found[of_row[pair], order[starts[pair] : stops[pair]]] = True
    return found


def _stacked(rows: Sequence[tuple[NDArray[np.int32], NDArray[np.float32]]], vocabulary_size: int) -> SparseBatch:
    return SparseBatch(
        np.cumsum([0, *(len(terms) for terms, _ in rows)]).astype(np.int64),
        np.concatenate([terms for terms, _ in rows]),
        np.concatenate([weights for _, weights in rows]),
        vocabulary_size,
    )
