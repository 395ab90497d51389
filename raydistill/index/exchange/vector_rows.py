"""Vectors made elsewhere, read from Parquet or JSON lines and checked row by row. What becomes of them is in `load`.

    Parquet      id (string or integer), weights (list of numbers), term_ids (list of integers) or terms (list of strings)
    JSON lines   {"id": …, "vector": {TERM: weight, …}}, TERM a string of the vocabulary, or without one an id in decimals

A row is good when its id is a non-empty string or an integer and none before it has it, every term is in the vocabulary and
named once, and every weight is finite and > 0 as float32. Terms may come in any order. Rows without any term are good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydistill.conversations.rows import BadRow, RowError, identifier, json_object, numbered_lines
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import DataError
from raydistill.index.passage_files import SeenIds

_ROWS_AT_A_TIME = 4096

BAD_ROW, BAD_ID, REPEATED_ID, BAD_TERM, REPEATED_TERM, BAD_WEIGHT = (
    "malformed row",
    "bad id",
    "repeated id",
    "unknown term",
    "repeated term",
    "weight not finite and > 0",
)


@dataclass(frozen=True)
class RefusedRow:
    """A row that is left out: where it stands, what kind of mistake it has (one of the constants above), and which."""

    place: str
    kind: str
    reason: str


@dataclass
class RawRows:
    """Rows as they were read; entries of row r are those between offsets[r] and offsets[r + 1].

    Attributes:
        places, ids: R each; an id is None where it is missing or of a wrong type.
        offsets: R + 1. terms: their ids, -1 where the vocabulary lacks one. names: the terms as written. weights: numbers.
    """

    places: list[str] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    offsets: Any = field(default_factory=lambda: [0])
    terms: Any = field(default_factory=list)
    names: Any = field(default_factory=list)
    weights: Any = field(default_factory=list)


class VectorReader:
    """Turns rows of files into vectors, and remembers the ids it has seen.

    Args:
        vocabulary_size: of the vectors.
        ids_of_terms: term string -> id; None reads decimal ids.
    """

    def __init__(self, vocabulary_size: int, ids_of_terms: Mapping[str, int] | None) -> None:
        self.vocabulary_size = vocabulary_size
        self.seen = SeenIds()
        self._ids_of_terms = ids_of_terms

    def json_lines(self, stream: BinaryIO, uri: str) -> Iterator[tuple[list[str], SparseBatch, list[RefusedRow]]]:
        """Yield (ids, vectors, refused rows) of an open JSON lines file, 4,096 lines at a time."""
        rows, refused = RawRows(), []
        for line in numbered_lines(stream, uri):
            try:
                if isinstance(line, BadRow):
                    raise RowError(line.reason)
                record = json_object(line.text)
                vector = record.get("vector")
                if not isinstance(vector, dict):
                    raise RowError('has no object "vector"')
                self._add(rows, line.place, record.get("id"), list(vector), list(vector.values()))
            except RowError as error:
                refused.append(RefusedRow(line.place, BAD_ROW, str(error)))
            if len(rows.ids) == _ROWS_AT_A_TIME:
                yield self._checked(rows, refused)
                rows, refused = RawRows(), []
        yield self._checked(rows, refused)

    def parquet(
        self, file: pq.ParquetFile, uri: str, groups: Sequence[int]
    ) -> Iterator[tuple[list[str], SparseBatch, list[RefusedRow]]]:
        """Yield (ids, vectors, refused rows) of some row groups of a Parquet file, 4,096 rows at a time."""
        by_name = "terms" in file.schema_arrow.names
        column = "terms" if by_name else "term_ids"
        starts = np.cumsum([0] + [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        for group in groups:
            number = int(starts[group])
            for batch in file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=["id", column, "weights"]):
                places = [f"{uri}: row {row}" for row in range(number, number + len(batch))]
                number += len(batch)
                yield self._checked(*self._arrow_rows(batch, column, places))

    def _arrow_rows(self, batch: pa.RecordBatch, column: str, places: list[str]) -> tuple[RawRows, list[RefusedRow]]:
        ids, terms, weights = (batch.column(name) for name in ("id", column, "weights"))
        whole = terms.null_count == weights.null_count == 0 and terms.value_lengths().equals(weights.value_lengths())
        entries, numbers = terms.flatten(), weights.flatten()
        if whole and entries.null_count == numbers.null_count == 0:
            offsets = np.concatenate([[0], np.cumsum(terms.value_lengths().to_numpy())])
            plain = entries.dictionary_encode()
            known = np.array([self._term_id(term) for term in plain.dictionary.to_pylist()], dtype=np.int64)
            codes = plain.indices.to_numpy()
            found = known[codes] if len(codes) else np.zeros(0, dtype=np.int64)
            passage_ids = [_identifier(passage_id) for passage_id in ids.to_pylist()]
            return RawRows(places, passage_ids, offsets, found, _Names(entries), numbers.to_numpy(zero_copy_only=False)), []
        rows, refused = RawRows(), []
        for place, *row in zip(places, *(values.to_pylist() for values in (ids, terms, weights)), strict=True):
            try:
                if row[1] is None or row[2] is None or len(row[1]) != len(row[2]):
                    raise RowError(f"has no {column} and weights of one length")
                self._add(rows, place, row[0], row[1], row[2])
            except RowError as error:
                refused.append(RefusedRow(place, BAD_ROW, str(error)))
        return rows, refused

    def _add(
        self, rows: RawRows, place: str, passage_id: Any, terms: Sequence[str | int | None], weights: Sequence[Any]
    ) -> None:
        """Append a row. Raises RowError when it is no vector at all."""
        if not all(isinstance(weight, (int, float)) and not isinstance(weight, bool) for weight in weights):
            raise RowError("has a weight that is no number")
        rows.places.append(place)
        rows.ids.append(_identifier(passage_id))
        rows.terms += [self._term_id(term) for term in terms]
        rows.names += terms
        rows.weights += weights
        rows.offsets.append(len(rows.terms))

    def _term_id(self, term: str | int | None) -> int:
        if isinstance(term, str) and self._ids_of_terms is not None:
            return self._ids_of_terms.get(term, -1)
        if isinstance(term, str):
            term = int(term) if term.isascii() and term.isdecimal() and len(term) < 12 else -1
        return term if term is not None and 0 <= term < self.vocabulary_size else -1

    def _checked(self, rows: RawRows, refused: list[RefusedRow]) -> tuple[list[str], SparseBatch, list[RefusedRow]]:
        offsets = np.asarray(rows.offsets, dtype=np.int64)
        terms = np.asarray(rows.terms, dtype=np.int64)
        with np.errstate(over="ignore"):
            weights = np.asarray(rows.weights, dtype=np.float64).astype(np.float32)
        row_of = np.repeat(np.arange(len(rows.ids)), np.diff(offsets))
        order = np.lexsort((terms, row_of))
        same = np.zeros(len(terms), dtype=bool)
        same[1:] = (np.diff(terms[order]) == 0) & (np.diff(row_of[order]) == 0)
        mistakes = {BAD_TERM: terms < 0, REPEATED_TERM: np.zeros(len(terms), dtype=bool)}
        mistakes[REPEATED_TERM][order] = same
        mistakes[BAD_WEIGHT] = ~(np.isfinite(weights) & (weights > 0))
        good = np.ones(len(rows.ids), dtype=bool)
        reasons: dict[int, tuple[str, str]] = {}
        for kind, wrong in mistakes.items():
            for entry in np.flatnonzero(wrong)[::-1].tolist():
                told = f"{rows.names[entry]!r}" + (
                    f" has the weight {float(rows.weights[entry])!r}" if kind == BAD_WEIGHT else ""
                )
                reasons[int(row_of[entry])] = (kind, f"{kind}: {told}")
        for row, passage_id in enumerate(rows.ids):
            if row in reasons:
                continue
            if passage_id is None:
                reasons[row] = (BAD_ID, "has no usable id: a string that is not empty, or an integer")
            elif not self.seen.add(passage_id):
                reasons[row] = (REPEATED_ID, f"repeats the id {passage_id!r} of an earlier row")
        good[list(reasons)] = False
        refused += [RefusedRow(rows.places[row], *reason) for row, reason in reasons.items()]
        # In the order of the file: places differ in their number alone, so the shorter and then the lesser come first.
        refused.sort(key=lambda row: (len(row.place), row.place))
        return (
            [passage_id for row, passage_id in enumerate(rows.ids) if passage_id is not None and row not in reasons],
            self._batch(offsets, terms[order], weights[order], good),
            refused,
        )

    def _batch(
        self, offsets: NDArray[np.int64], terms: NDArray[np.int64], weights: NDArray[np.float32], good: NDArray[np.bool_]
    ) -> SparseBatch:
        # Entries are sorted by term within their row; rows that are left out may hold anything.
        everything = SparseBatch(offsets, terms.astype(np.int32), weights, self.vocabulary_size)
        return everything.select(np.flatnonzero(good))


class _Names:
    """The terms of a batch as they were written, looked at only to name a wrong one."""

    def __init__(self, entries: pa.Array) -> None:
        self._entries = entries

    def __getitem__(self, entry: int) -> Any:
        return self._entries[entry].as_py()


def _identifier(passage_id: Any) -> str | None:
    try:
        return identifier({"id": passage_id}, "id")
    except RowError:
        return None


def parquet_shards(file: pq.ParquetFile, uri: str, rows: int) -> list[list[int]]:
    """Return the row groups of a Parquet file in runs of at most `rows` rows (a larger group is a run of its own).

    Raises DataError when the file does not have the columns of vectors.
    """
    names = set(file.schema_arrow.names)
    if not {"id", "weights"} <= names or not names & {"terms", "term_ids"}:
        raise DataError(
            f"{uri} has the columns {', '.join(sorted(names))}; vectors need id, weights, and term_ids or terms: rename them"
        )
    shards: list[list[int]] = []
    held = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if not shards or held + size > rows:
            shards.append([])
            held = 0
        shards[-1].append(group)
        held += size
    return shards


def is_parquet(uri: str) -> bool:
    """Tell the two formats apart by their suffix."""
    return uri.endswith((".parquet", ".pq"))


def names_terms(schema: pa.Schema) -> bool:
    """Tell whether the vectors of a Parquet file name terms by strings."""
    return "terms" in schema.names
