"""Mined queries as training reads them: the columns of a table become arrays once, and a query is a few slices of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Vector = tuple[NDArray[np.int32], NDArray[np.float32]]
COLUMNS = ("query_id", "depth", "question", "history", "gold", "passages", "scores")
"""What is read of every query."""
REWRITES = ("rewrite_terms", "rewrite_weights")
SOURCE = "source"
STUDENT_BEST = "student_best"
_NO_PASSAGES = np.zeros(0, dtype=np.int64)
_NO_VECTOR: Vector = (np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32))


@dataclass(frozen=True)
class MinedQuery:
    """One query with its candidates.

    Attributes:
        query_id, depth, question: of the turn. history: (question, answer) of earlier turns, oldest first.
        gold: int64 [G] passage numbers. passages: int64 [C] passage numbers.
        scores: float32 [T, C]; NaN rows for teachers without a rewrite.
        rewrite: vector {term: weight} of the rewrites as (int32 [n] ascending, float32 [n]), the mean over the teachers that
            have one; empty where none has, or where the table holds no rewrites.
        student_best: int64 [S] passage numbers that the student of the round before ranks highest, best first; empty where
            there was none, or where the table does not hold them.
    """

    query_id: str
    depth: int
    question: str
    history: tuple[tuple[str, str], ...]
    gold: NDArray[np.int64]
    passages: NDArray[np.int64]
    scores: NDArray[np.float32]
    rewrite: Vector
    student_best: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


class MinedTable:
    """Rows of mined candidates (columns: see `index.candidates`).

    Args:
        table: COLUMNS, and of REWRITES, SOURCE and STUDENT_BEST what is wanted.
    """

    def __init__(self, table: pa.Table) -> None:
        column = {name: table.column(name).combine_chunks() for name in table.column_names}
        self._query_ids, self._questions = column["query_id"], column["question"]
        self.depths: NDArray[np.int64] = column["depth"].to_numpy().astype(np.int64)
        """int64 [rows]; turn depth, from 1."""
        self._history = _Lists(column["history"])
        self._asked, self._answered = (pc.struct_field(self._history.items, name) for name in ("question", "answer"))
        self._gold, self._passages = (_Arrays(column[name], np.int64) for name in ("gold", "passages"))
        self._scores = _ArraysOfTeachers(column["scores"], np.float32)
        self._rewrites = None
        if REWRITES[0] in column:
            terms, weights = (_ArraysOfTeachers(column[name], dtype) for name, dtype in zip(REWRITES, _VECTOR, strict=True))
            self._rewrites = (terms, weights)
        self._student_best = _Arrays(column[STUDENT_BEST], np.int64) if STUDENT_BEST in column else None
        self._source = column.get(SOURCE)

    def __len__(self) -> int:
        return len(self.depths)

    def query(self, row: int) -> MinedQuery:
        """Return one row; its gold, passages and student_best are read-only views of the table."""
        passages = self._passages[row]
        scores = self._scores[row]
        absent = np.full(len(passages), np.nan, dtype=np.float32)
        earlier = self._history.range(row)
        return MinedQuery(
            query_id=self._query_ids[row].as_py(),
            depth=int(self.depths[row]),
            question=self._questions[row].as_py(),
            history=tuple(zip(self._asked[earlier].to_pylist(), self._answered[earlier].to_pylist(), strict=True)),
            gold=self._gold[row],
            passages=passages,
            scores=np.stack([absent if of_teacher is None else of_teacher for of_teacher in scores]),
            rewrite=_NO_VECTOR if self._rewrites is None else self._rewrite(row, *self._rewrites),
            # The first round's candidates have none.
            student_best=_NO_PASSAGES if self._student_best is None else self._student_best[row],
        )

    def sources(self) -> NDArray[np.int64]:
        """Return a number for the source of each row, int64 [rows]; the table holds SOURCE."""
        if self._source is None:
            raise ValueError(f"the table was read without its column {SOURCE!r}")
        return np.asarray(self._source.dictionary_encode().indices.to_numpy(), dtype=np.int64)

    def text_lengths(self) -> NDArray[np.int64]:
        """Return the number of characters of each row's question and history, int64 [rows]."""
        of_turn = pc.add(pc.utf8_length(self._asked), pc.utf8_length(self._answered))
        sums = np.concatenate([[0], np.cumsum(of_turn.to_numpy(zero_copy_only=False))])
        questions = pc.utf8_length(self._questions).to_numpy()
        return np.asarray(questions + sums[self._history.stops] - sums[self._history.starts], dtype=np.int64)

    @staticmethod
    def _rewrite(row: int, terms: _ArraysOfTeachers, weights: _ArraysOfTeachers) -> Vector:
        pairs = zip(terms[row], weights[row], strict=True)
        return _mean_vector([(of, by) for of, by in pairs if of is not None and by is not None])


_VECTOR = (np.int32, np.float32)


class _Lists:
    """A column of lists: `items` of all rows, and where those of a row lie; a null is an empty list."""

    def __init__(self, column: pa.Array) -> None:
        offsets = column.offsets.to_numpy().astype(np.int64)
        self.items: pa.Array = column.values
        self.valid: NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
        self.starts = offsets[:-1]
        self.stops: NDArray[np.int64] = np.where(self.valid, offsets[1:], self.starts)

    def range(self, row: int) -> slice:
        """Return where a row's items lie."""
        return slice(int(self.starts[row]), int(self.stops[row]))


class _Arrays:
    """A column of lists of numbers as one array; an absent number is NaN in floating point."""

    def __init__(self, column: pa.Array, dtype: type) -> None:
        self.lists = _Lists(column)
        self._values: NDArray[Any] = np.asarray(self.lists.items.to_numpy(zero_copy_only=False), dtype=dtype)

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self._values[self.lists.range(row)]


class _ArraysOfTeachers:
    """A column with a list of numbers a teacher, None for a teacher that has none."""

    def __init__(self, column: pa.Array, dtype: type) -> None:
        self._teachers = _Lists(column)
        self._of_teacher = _Arrays(self._teachers.items, dtype)

    def __getitem__(self, row: int) -> list[NDArray[Any] | None]:
        where = self._teachers.range(row)
        valid = self._of_teacher.lists.valid
        return [self._of_teacher[place] if valid[place] else None for place in range(where.start, where.stop)]


def _mean_vector(vectors: Sequence[Vector]) -> Vector:
    """Return the mean of sparse vectors, terms ascending."""
    terms = np.concatenate([_NO_VECTOR[0], *(terms for terms, _ in vectors)])
    weights = np.concatenate([_NO_VECTOR[1], *(weights for _, weights in vectors)])
    found, column = np.unique(terms, return_inverse=True)
    sums = np.bincount(column, weights=weights, minlength=len(found)) / max(1, len(vectors))
    return found, sums.astype(np.float32)
