"""Batches for the training of a document encoder: texts of queries and passages, and the scores that are known beforehand.

Every batch has the same make-up: a fixed number of turns of recorded runs, the rest passages' own sentences. Turns are
drawn by run and weight, sentences are visited in shuffled order over many parts of the corpus at a time, each once an
epoch; both depend on nothing but seed and position. What the dense teacher says is computed where the batch is used
(`document_loop`).

Memory, of every process that makes batches: the examples of all runs, and `_SHUFFLED_TOGETHER` sentences with their
candidates (a part, where that is more), twice while a group is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydistill.config import DocumentTrainingConfig
from raydistill.distill.sampling import generator
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.interface import SparseEncoder
from raydistill.encoders.tokens import tokenize
from raydistill.errors import TrainingError
from raydistill.index.passage_texts import PassageTexts
from raydistill.storage.artifacts import Artifact, Part

_ABSENT = -1
_SHUFFLED_TOGETHER = 65_536
"""Sentences; with 50 candidates each they take 36 MB."""


@dataclass(frozen=True)
class Example:
    """A training query.

    Attributes:
        text: of the query.
        gold: int64 [G], numbers of relevant passages.
        passages: int64 [C], ascending, the passages it may be shown with.
        recorded: float32 [C], the recorded run's scores, standardised over what it lists; NaN where it is silent.
    """

    text: str
    gold: NDArray[np.int64]
    passages: NDArray[np.int64]
    recorded: NDArray[np.float32]


@dataclass(frozen=True)
class DocumentBatch:
    """One global batch of B queries with K places each, P = B K columns.

    Attributes:
        queries: B texts. passages: P texts, "" where nothing was drawn.
        drawn: bool [P].
        positive: bool [B, P]; the column holds a relevant passage of the query, whoever drew it.
        recorded, lexical: float32 [B, P]; teachers' scores, NaN where absent: where the run is silent, and BM25's everywhere
            where nobody learns from them. Of `recorded` every column counts that the run lists, whoever drew it.
        epoch: of the sentences.
    """

    queries: tuple[str, ...]
    passages: tuple[str, ...]
    drawn: NDArray[np.bool_]
    positive: NDArray[np.bool_]
    recorded: NDArray[np.float32]
    lexical: NDArray[np.float32]
    epoch: int


@dataclass(frozen=True)
class ReadyDocuments:
    """A batch without its texts, and their token ids, queries first: for the encoder, and for a dense teacher."""

    batch: DocumentBatch
    ids: list[list[int]]
    dense_ids: list[list[int]] | None


@dataclass(frozen=True)
class DocumentReader:
    """Makes batches ready for a worker; can be sent to a process.

    Attributes:
        stream: the batches.
        tokenizer: the encoder's. max_tokens: kept of a text.
        dense: tokenizer and length of the dense teacher; None without one.
    """

    stream: DocumentStream
    tokenizer: Any
    max_tokens: int
    dense: tuple[Any, int] | None

    def batches(self, first_step: int, every: int = 1) -> Iterator[ReadyDocuments]:
        """Yield the batches from an optimizer step on, for ever; of `every` steps the first."""
        for batch in self.stream.batches(first_step, every):
            texts = [*batch.queries, *batch.passages]
            dense_ids = tokenize(self.dense[0], texts, self.dense[1]) if self.dense else None
            ids = tokenize(self.tokenizer, texts, self.max_tokens)
            yield ReadyDocuments(replace(batch, queries=(), passages=()), ids, dense_ids)


class DocumentStream:
    """Global batches from any optimizer step on, for ever.

    Args:
        examples: what `document_mining` made.
        training: make-up of a batch, places, seed.
        texts: of the passages.
        lexical: the encoder of the first stage, whose scores are the lexical teacher's.

    Raises TrainingError when there are no examples of the kinds that the batches want.
    """

    def __init__(
        self, examples: Artifact, training: DocumentTrainingConfig, texts: PassageTexts, lexical: SparseEncoder
    ) -> None:
        self._examples = examples
        self._training = training
        self._texts = texts
        self._lexical = lexical
        parts = [part for part in examples.manifest().parts if part.rows > 0]
        self._own_parts = [part for part in parts if part.name.startswith("own-")]
        self._runs = {
            int(part.name.removeprefix("run-")): self._read(part) for part in parts if part.name.startswith("run-")
        }
        self.sentences = sum(part.rows for part in self._own_parts)
        """Number of sentences in an epoch."""
        batch = training.global_batch
        wanted = round(training.run_share * batch) if self._runs else 0
        self._from_runs = batch if not self.sentences else min(batch, max(1, wanted)) if self._runs else 0
        if not self._runs and not self.sentences:
            raise TrainingError(f"{examples.uri} holds no query: there is nothing to train the document encoder on")

    def batches(self, first_step: int, every: int = 1) -> Iterator[DocumentBatch]:
        """Yield the batches from an optimizer step on (0-based); of `every` steps the first."""
        own = self._training.global_batch - self._from_runs
        sentences = self._sentences(first_step * own)
        for step in count(first_step, every):
            random = generator(self._training.seed, step, "recorded")
            drawn = [self._recorded(random) for _ in range(self._from_runs)]
            asked = list(islice(sentences, own))
            drawn += [_example(table, row) for _, table, row in asked]
            epoch = asked[-1][0] if asked else 0
            del asked  # it holds the tables
            yield self._batch(drawn, epoch, generator(self._training.seed, step, "passages"))
            deque(islice(sentences, (every - 1) * own), maxlen=0)

    def sample_passages(self, number: int) -> list[str]:
        """Return the texts of `number` passages (all, where there are fewer), evenly spaced; for calibration."""
        return self._texts.texts(np.unique(np.linspace(0, len(self._texts) - 1, number).astype(np.int64)))

    def _recorded(self, random: np.random.Generator) -> Example:
        weights = np.asarray([self._training.runs[number].weight for number in self._runs])
        chosen = list(self._runs.values())[int(random.choice(len(weights), p=weights / weights.sum()))]
        return _example(chosen, int(random.integers(len(chosen))))

    def _sentences(self, position: int) -> Iterator[tuple[int, pa.Table, int]]:
        """Yield (epoch, table, row) of sentences; those that are skipped should cost nothing."""
        if not self.sentences:
            return
        epoch, skip = divmod(position, self.sentences)
        while True:
            shuffled = generator(self._training.seed, epoch, "parts").permutation(len(self._own_parts)).tolist()
            for group in _together([self._own_parts[number] for number in shuffled]):
                rows = sum(part.rows for part in group)
                if skip < rows:
                    table = pa.concat_tables([self._read(part) for part in group]).combine_chunks()
                    order = generator(self._training.seed, epoch, group[0].name).permutation(rows)
                    for row in order[skip:].tolist():
                        yield epoch, table, row
                    del table  # before the next group is read
                skip = max(0, skip - rows)
            epoch += 1

    def _read(self, part: Part) -> pa.Table:
        return pq.read_table(self._examples.fetch(part)).combine_chunks()

    def _batch(self, examples: Sequence[Example], epoch: int, random: np.random.Generator) -> DocumentBatch:
        numbers = np.concatenate([drawn_passages(example, self._training.passages, random) for example in examples])
        drawn = numbers != _ABSENT
        texts = np.full(len(numbers), "", dtype=object)
        texts[drawn] = self._texts.texts(numbers[drawn])
        queries = tuple(example.text for example in examples)
        lexical = np.full((len(queries), len(texts)), np.nan, dtype=np.float32)
        if self._training.follows_lexical:
            asked, read = self._lexical.encode_queries(list(queries)), self._lexical.encode_passages(texts.tolist())
            lexical = dot_products(asked, read)
        return DocumentBatch(
            queries=queries,
            passages=tuple(texts.tolist()),
            drawn=drawn,
            positive=np.stack([np.isin(numbers, example.gold) for example in examples]),
            recorded=np.stack([_recorded_of(example, numbers) for example in examples]),
            lexical=np.where(drawn, lexical, np.nan).astype(np.float32),
            epoch=epoch,
        )


def _together(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Yield parts in groups that are shuffled together.

    A part is a stretch of the corpus, often of one kind: parts one after the other, training forgets each for the next.
    """
    group: list[Part] = []
    rows = 0
    for part in parts:
        if group and rows + part.rows > _SHUFFLED_TOGETHER:
            yield group
            group, rows = [], 0
        group.append(part)
        rows += part.rows
    yield group


def drawn_passages(example: Example, places: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return the passages that a query is shown with, int64 [places]; -1 fills up where there are too few.

    One relevant passage where there is one. Then, up to three quarters of all places, passages that the recorded run
    lists: only among those does it say anything. The others are uniform over what BM25 found beyond them, without the
    query's other relevant passages; listed ones fill up what is missing.
    """
    taken: list[int] = []
    if len(example.gold):
        taken.append(int(random.choice(example.gold)))
    is_listed = ~np.isnan(example.recorded)
    listed = random.permutation(example.passages[is_listed & ~np.isin(example.passages, taken)])
    others = random.permutation(example.passages[~is_listed & ~np.isin(example.passages, example.gold)])
    first = max(0, 3 * places // 4 - len(taken))
    taken += [*listed[:first].tolist(), *others.tolist()][: places - len(taken)]
    taken += listed[first : first + places - len(taken)].tolist()
    return np.asarray(taken[:places] + [_ABSENT] * (places - len(taken)), dtype=np.int64)


def dot_products(queries: SparseBatch, passages: SparseBatch) -> NDArray[np.float32]:
    """Return the scores of every query and every passage, float32 [B, P]."""
    dense = queries.to_dense()
    rows = np.repeat(np.arange(len(passages)), passages.lengths())
    products = dense[:, passages.term_ids] * passages.weights
    return np.stack([np.bincount(rows, weights=row, minlength=len(passages)) for row in products]).astype(np.float32)


def _recorded_of(example: Example, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the recorded scores of any passages, float32 [P]; NaN where the run is silent."""
    places = np.minimum(np.searchsorted(example.passages, numbers), max(0, len(example.passages) - 1))
    known = example.passages[places] == numbers
    return np.where(known, example.recorded[places], np.nan).astype(np.float32)


def _example(table: pa.Table, row: int) -> Example:
    values = {name: table.column(name)[row] for name in table.column_names}
    passages = _array(values["passages"], np.int64)
    recorded = np.full(len(passages), np.nan, dtype=np.float32)
    if values["recorded"].is_valid:
        recorded = standardised(_array(values["recorded"], np.float32))
    return Example(values["text"].as_py(), _array(values["gold"], np.int64), passages, recorded)


def standardised(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scores with mean 0 and standard deviation 1 over the present ones; all 0 where they are equal.

    Systems score on scales of their own (a cosine, a BM25 sum): one temperature shall do for all of them.
    """
    present = ~np.isnan(scores)
    kept = scores[present].astype(np.float64)
    spread = float(kept.std()) if len(kept) else 0.0
    result = scores.astype(np.float64)
    result[present] = (kept - kept.mean()) / spread if spread > 1e-9 * max(1.0, float(np.abs(kept).max())) else 0.0
    return result.astype(np.float32)


def _array(scalar: Any, dtype: type) -> NDArray[Any]:
    return np.asarray(scalar.values.to_numpy(zero_copy_only=False), dtype=dtype)
