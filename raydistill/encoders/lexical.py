"""Lexical encoding: BM25 impacts over the vocabulary of a Hugging Face fast tokenizer, and the statistics they need.

No trained weights are involved, so a collection can be indexed for a student that is yet to be trained. This module
imports neither torch nor transformers: it reads the Rust tokenizer inside the Hugging Face one. Reading and distributing
the collection is not done here; statistics of shards are merged.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from tokenizers import Tokenizer

from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.interface import EncodingTally
from raydistill.errors import ConfigError, CorruptObjectError

STATISTICS_VERSION = 1
TEXTS_AT_A_TIME = 512


@dataclass(frozen=True)
class LexicalStatistics:
    """What BM25 has to know of a collection; the statistics of its shards add up to those of the whole.

    Attributes:
        document_frequency: int64 [V]; passages that contain the term.
        passages: number of passages.
        tokens: number of tokens over all passages, special tokens not counted.
    """

    document_frequency: NDArray[np.int64]
    passages: int
    tokens: int

    @staticmethod
    def empty(vocabulary_size: int) -> LexicalStatistics:
        """Return the statistics of no passage at all: the neutral element of `merge`."""
        return LexicalStatistics(np.zeros(vocabulary_size, dtype=np.int64), 0, 0)

    @property
    def mean_length(self) -> float:
        """Mean number of tokens a passage; 1.0 for an empty collection."""
        return self.tokens / self.passages if self.tokens else 1.0

    def merge(self, other: LexicalStatistics) -> LexicalStatistics:
        """Return the statistics of both collections together; ValueError when the vocabularies differ in size."""
        if len(self.document_frequency) != len(other.document_frequency):
            raise ValueError(
                f"statistics over {len(self.document_frequency)} and {len(other.document_frequency)} terms cannot be merged"
            )
        return LexicalStatistics(
            self.document_frequency + other.document_frequency, self.passages + other.passages, self.tokens + other.tokens
        )

    def resized(self, vocabulary_size: int) -> LexicalStatistics:
        """Return the same statistics over more columns, the new ones never seen (embedding rows without a token)."""
        missing = vocabulary_size - len(self.document_frequency)
        if missing < 0:
            raise ValueError(f"cannot cut statistics over {len(self.document_frequency)} terms down to {vocabulary_size}")
        return LexicalStatistics(np.pad(self.document_frequency, (0, missing)), self.passages, self.tokens)

    def inverse_document_frequency(self) -> NDArray[np.float32]:
        """Return log(1 + (N - df + 1/2) / (df + 1/2)), float32 [V], always > 0 (Lucene's form of Robertson's idf)."""
        frequency = self.document_frequency.astype(np.float64)
        return np.log1p((self.passages - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)

    def to_bytes(self) -> bytes:
        """Return the statistics as a safetensors file; equal statistics give equal bytes."""
        return save_tensors(
            {
                "document_frequency": np.ascontiguousarray(self.document_frequency),
                "version_passages_tokens": np.array([STATISTICS_VERSION, self.passages, self.tokens], dtype=np.int64),
            }
        )

    @staticmethod
    def from_bytes(content: bytes) -> LexicalStatistics:
        """Read what `to_bytes` wrote; CorruptObjectError for anything else."""
        try:
            tensors = load_tensors(content)
            frequency = tensors["document_frequency"]
            version, passages, tokens = (int(number) for number in tensors["version_passages_tokens"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise CorruptObjectError(
                f"these {len(content)} bytes are no lexical statistics ({error}); rebuild the index's statistics"
            ) from None
        if version != STATISTICS_VERSION:
            raise CorruptObjectError(
                f"lexical statistics have format {version}, this release reads {STATISTICS_VERSION}; rebuild the index"
            )
        return LexicalStatistics(frequency, passages, tokens)


class TermCounter:
    """Counts the terms of texts with a fast tokenizer: no truncation, special tokens dropped.

    Args:
        tokenizer: a `tokenizers.Tokenizer` or a Hugging Face fast tokenizer; it is copied, never changed.
        vocabulary_size: number of columns; default the tokenizer's own, added tokens included. Larger where a model
            has more embedding rows than its tokenizer has tokens.

    Raises ConfigError for a slow (pure Python) tokenizer, or one with more tokens than `vocabulary_size`.
    """

    def __init__(self, tokenizer: Any, vocabulary_size: int | None = None) -> None:
        backend = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ConfigError(
                f"{type(tokenizer).__name__} is no fast tokenizer; lexical documents need a model with a tokenizer.json"
            )
        # tokenizer.json may carry a truncation length and padding: work on a copy that has neither.
        self._tokenizer = Tokenizer.from_str(backend.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._terms: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        needed = max(self._terms.values(), default=-1) + 1
        self.vocabulary_size = needed if vocabulary_size is None else vocabulary_size
        if self.vocabulary_size < needed:
            raise ConfigError(f"the tokenizer has {needed} terms, more than the vocabulary size {self.vocabulary_size}")
        self._dropped = np.zeros(self.vocabulary_size, dtype=bool)
        self._dropped[special_token_ids(tokenizer)] = True

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` makes the same counter of."""
        return {
            "tokenizer": self._tokenizer.to_str(),
            "vocabulary_size": self.vocabulary_size,
            "dropped": np.flatnonzero(self._dropped).tolist(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TermCounter:
        """Return the counter that `to_json` was asked of."""
        counter = cls(Tokenizer.from_str(content["tokenizer"]), content["vocabulary_size"])
        # A Hugging Face tokenizer may know of more special tokens than its backend does.
        counter._dropped[content["dropped"]] = True
        return counter

    def vocabulary(self) -> list[str]:
        """Return the terms by id, `vocabulary_size` strings."""
        return terms_by_id(self._terms, self.vocabulary_size)

    def counts(self, texts: Sequence[str]) -> SparseBatch:
        """Return how often each term occurs in each text, as weights."""
        if not texts:
            return SparseBatch.from_rows([], self.vocabulary_size)
        parts = [self._chunk_counts(chunk) for chunk in _chunks(texts, TEXTS_AT_A_TIME)]
        return SparseBatch.concatenate(parts)

    def _chunk_counts(self, texts: list[str]) -> SparseBatch:
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.fromiter((len(ids) for ids in encoded), dtype=np.int64, count=len(encoded))
        terms = np.fromiter((term for ids in encoded for term in ids), dtype=np.int64, count=int(lengths.sum()))
        rows = np.repeat(np.arange(len(texts), dtype=np.int64), lengths)
        kept = ~self._dropped[terms]
        # One sort over row * V + term counts every row at once and leaves term ids ascending within a row.
        keys, counts = np.unique(rows[kept] * self.vocabulary_size + terms[kept], return_counts=True)
        row_of_key, term_ids = np.divmod(keys, self.vocabulary_size)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row_of_key, minlength=len(texts)))]).astype(np.int64)
        return SparseBatch(indptr, term_ids.astype(np.int32), counts.astype(np.float32), self.vocabulary_size)


def count_statistics(tokenizer: Any, texts: Iterable[str], vocabulary_size: int | None = None) -> LexicalStatistics:
    """Return the statistics of a stream of passages; memory does not grow with the number of texts.

    Args:
        tokenizer: as for `TermCounter`; a `TermCounter` itself is taken too, and saves its set-up.
        texts: the passages.
        vocabulary_size: as for `TermCounter`.
    """
    counter = tokenizer if isinstance(tokenizer, TermCounter) else TermCounter(tokenizer, vocabulary_size)
    frequency = np.zeros(counter.vocabulary_size, dtype=np.int64)
    passages = tokens = 0
    for chunk in _chunks(texts, TEXTS_AT_A_TIME):
        counts = counter.counts(chunk)
        frequency += np.bincount(counts.term_ids, minlength=counter.vocabulary_size)
        passages += len(chunk)
        tokens += int(counts.weights.sum(dtype=np.float64))
    return LexicalStatistics(frequency, passages, tokens)


class LexicalEncoder:
    """BM25 as a sparse encoder (Robertson and Zaragoza, 2009): the dot product of query and passage is the BM25 score.

    A passage's weight is idf(t) * tf / (tf + k1 * (1 - b + b * length / mean length)), without BM25's constant factor
    (k1 + 1), which changes no ranking. A query's weight is the number of times it holds the term. Special tokens
    are dropped from both. Terms the collection never had keep their weight in queries; nothing matches them.

    Args:
        tokenizer: as for `TermCounter`; a `TermCounter` itself is taken too.
        statistics: of the collection, over as many terms as vectors shall have columns.
        k1: saturation of the term frequency, >= 0.
        b: strength of the length normalisation, 0 to 1.
    """

    def __init__(self, tokenizer: Any, statistics: LexicalStatistics, k1: float = 0.9, b: float = 0.4) -> None:
        size = len(statistics.document_frequency)
        self._counter = tokenizer if isinstance(tokenizer, TermCounter) else TermCounter(tokenizer, size)
        if self._counter.vocabulary_size != size:
            raise ConfigError(
                f"the statistics are over {size} terms, the tokenizer's vocabulary has {self._counter.vocabulary_size}; "
                "count the statistics with the student's own tokenizer"
            )
        self.statistics = statistics
        self.k1 = k1
        self.b = b
        self._idf = statistics.inverse_document_frequency()

    @property
    def vocabulary_size(self) -> int:
        """Number of columns of every batch."""
        return self._counter.vocabulary_size

    def vocabulary(self) -> list[str]:
        """Return the terms by id."""
        return self._counter.vocabulary()

    def encode_queries(self, texts: Sequence[str]) -> SparseBatch:
        """Return term counts."""
        return self._counter.counts(texts)

    def encode_stream(self, windows: Iterable[Sequence[str]], tally: EncodingTally) -> Iterator[SparseBatch]:
        """Yield the BM25 impacts of each window; passages are never cut."""
        for texts in windows:
            started = time.perf_counter()
            vectors = self.encode_passages(texts)
            tally.compute_seconds += time.perf_counter() - started
            tally.passages += len(texts)
            yield vectors

    def encode_passages(self, texts: Sequence[str]) -> SparseBatch:
        """Return BM25 impacts."""
        counts = self._counter.counts(texts)
        running = np.concatenate([[0.0], np.cumsum(counts.weights, dtype=np.float64)])
        lengths = running[counts.indptr[1:]] - running[counts.indptr[:-1]]
        norms = self.k1 * (1.0 - self.b + self.b * lengths / self.statistics.mean_length)
        saturation = np.repeat(norms, counts.lengths())
        weights = self._idf[counts.term_ids] * counts.weights / (counts.weights + saturation)
        return SparseBatch(counts.indptr, counts.term_ids, weights.astype(np.float32), counts.vocabulary_size)


def special_token_ids(tokenizer: Any) -> list[int]:
    """Return the ids of special tokens ([CLS], [SEP], padding, unknown and the like), ascending.

    Args:
        tokenizer: a `tokenizers.Tokenizer` or a Hugging Face tokenizer.
    """
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    found = set(getattr(tokenizer, "all_special_ids", []))
    if isinstance(backend, Tokenizer):
        found |= {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    return sorted(found)


def terms_by_id(vocabulary: dict[str, int], vocabulary_size: int) -> list[str]:
    """Return the term of every id below `vocabulary_size`; `[no term N]` for ids that no token has."""
    terms = [f"[no term {number}]" for number in range(vocabulary_size)]
    for term, number in vocabulary.items():
        terms[number] = term
    return terms


def _chunks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    remaining = iter(texts)
    while chunk := list(islice(remaining, size)):
        yield chunk
