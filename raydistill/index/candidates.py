"""The Parquet forms of mining: queries going in, candidates coming out. What the candidates are is decided in `mine`.

Queries: query_id, conversation_id, source, question string; depth int32; history list<struct<question, answer>> (oldest
first); gold_ids list<string>. Candidates: the same without gold_ids, and gold list<int64>, passages list<int64>
(ascending), scores list<list<float32>>: one list a teacher, in the order of the manifest's "teachers", parallel to
passages; null where the teacher has no rewrite of the query. rewrite_terms list<list<int32>> and rewrite_weights
list<list<float32>> hold each teacher's rewrite as a vector in the document space, terms ascending, null likewise. The lists
of a name NAME@student are those of an earlier student (see `mine`), scaled, and null too where it tells no passage apart.
student_best list<int64>: passages that an earlier student finds for the conversation, best first; null where there is none.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydistill.conversations.records import ConversationalQuery

_HISTORY = pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string())]))
_TURN = [
    ("query_id", pa.string()),
    ("conversation_id", pa.string()),
    ("source", pa.string()),
    ("depth", pa.int32()),
    ("question", pa.string()),
    ("history", _HISTORY),
]
QUERIES = pa.schema([*_TURN, ("gold_ids", pa.list_(pa.string()))])
CANDIDATES = pa.schema(
    [
        *_TURN,
        ("gold", pa.list_(pa.int64())),
        ("passages", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.list_(pa.float32()))),
        ("rewrite_terms", pa.list_(pa.list_(pa.int32()))),
        ("rewrite_weights", pa.list_(pa.list_(pa.float32()))),
        ("student_best", pa.list_(pa.int64())),
    ]
)
_ROWS_IN_GROUP = 128


def gold_ids(query_id: str, qrels: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the ids of the passages judged relevant (grade > 0) for a query, ascending."""
    return sorted(passage_id for passage_id, grade in qrels.get(query_id, {}).items() if grade > 0)


def queries_fingerprint(queries: Iterable[ConversationalQuery], qrels: Mapping[str, Mapping[str, int]]) -> str:
    """Return a SHA-256 (64 hex characters) over queries, histories and relevant passages, in order."""
    digest = hashlib.sha256()
    for query in queries:
        digest.update(json.dumps(_query_fields(query, qrels), sort_keys=True).encode())
    return digest.hexdigest()


def query_table(queries: Sequence[ConversationalQuery], qrels: Mapping[str, Mapping[str, int]]) -> pa.Table:
    """Return the queries as a table of schema QUERIES."""
    return pa.Table.from_pylist([_query_fields(query, qrels) for query in queries], schema=QUERIES)


def _query_fields(query: ConversationalQuery, qrels: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    return {
        "query_id": query.query_id,
        "conversation_id": query.conversation_id,
        "source": query.source,
        "depth": query.depth,
        "question": query.question,
        "history": [{"question": turn.question, "answer": turn.answer} for turn in query.history],
        "gold_ids": gold_ids(query.query_id, qrels),
    }


def candidate_table(
    queries: pa.Table,
    gold: Sequence[NDArray[np.int64]],
    passages: Sequence[NDArray[np.int64]],
    scores: Sequence[Sequence[NDArray[np.float32] | None]],
    rewrites: Sequence[Sequence[tuple[NDArray[np.int32], NDArray[np.float32]] | None]],
    student_best: Sequence[NDArray[np.int64]] | None = None,
) -> pa.Table:
    """Return a table of schema CANDIDATES.

    Args:
        queries: Q rows of schema QUERIES.
        gold, passages: Q arrays int64.
        scores: for each of T teachers Q arrays float32 parallel to passages, None where it has no rewrite.
        rewrites: for each of T teachers Q vectors (int32 terms, float32 weights), None likewise.
        student_best: Q arrays int64; None where no student was asked.
    """
    columns = [queries.column(name).combine_chunks() for name, _ in _TURN]
    columns += [_lists(gold, np.dtype(np.int64)), _lists(passages, np.dtype(np.int64))]
    columns += [
        _by_teacher(scores, np.dtype(np.float32)),
        _by_teacher([[pair and pair[0] for pair in teacher] for teacher in rewrites], np.dtype(np.int32)),
        _by_teacher([[pair and pair[1] for pair in teacher] for teacher in rewrites], np.dtype(np.float32)),
        _lists([None] * len(queries) if student_best is None else student_best, np.dtype(np.int64)),
    ]
    return pa.Table.from_arrays(columns, schema=CANDIDATES)


def candidate_scores(table: pa.Table, row: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the passages int64 [C] of a row of CANDIDATES and their scores float32 [T, C], NaN where absent."""
    passages = np.asarray(table.column("passages")[row].values.to_numpy(), dtype=np.int64)
    of_teachers = table.column("scores")[row]
    scores = np.full((len(of_teachers), len(passages)), np.nan, dtype=np.float32)
    for teacher, given in enumerate(of_teachers):
        if given.is_valid:
            scores[teacher] = given.values.to_numpy(zero_copy_only=False)
    return passages, scores


def _by_teacher(arrays: Sequence[Sequence[NDArray[Any] | None]], dtype: np.dtype[Any]) -> pa.Array:
    """Return list<list> with one list a query of one list a teacher, from T sequences of Q arrays."""
    by_query = [array for of_query in zip(*arrays, strict=True) for array in of_query]
    offsets = np.arange(0, len(by_query) + 1, len(arrays), dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), _lists(by_query, dtype))


def _lists(arrays: Sequence[NDArray[Any] | None], dtype: np.dtype[Any]) -> pa.Array:
    """Return a list array without passing through Python objects; None becomes null."""
    kept = [np.zeros(0, dtype=dtype) if array is None else array for array in arrays]
    offsets = np.zeros(len(kept) + 1, dtype=np.int32)
    np.cumsum([len(array) for array in kept], out=offsets[1:])
    values = pa.array(np.concatenate([np.zeros(0, dtype=dtype), *kept]).astype(dtype, copy=False))
    absent = np.array([array is None for array in arrays], dtype=bool)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(absent) if absent.any() else None)


def parquet_bytes(table: pa.Table) -> bytes:
    """Return the table as Parquet, zstd, in row groups of 128; equal tables give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=_ROWS_IN_GROUP)
    return buffer.getvalue()
