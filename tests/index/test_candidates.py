"""The Parquet form of candidates gives back what was put into it, absent teachers included."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.conversations.records import ConversationalQuery, Turn
from raydistill.index.candidates import CANDIDATES, candidate_table, parquet_bytes, queries_fingerprint, query_table


def queries(number: int, source: str = "") -> list[ConversationalQuery]:
    history = (Turn("c::1", 1, "who?", "someone"),)
    return [ConversationalQuery(f"c::{n}", "c", 2, f"question {n}", history, source) for n in range(number)]


@given(st.integers(0, 4), st.integers(1, 3), st.data())
@settings(max_examples=60, deadline=None)
def test_a_table_gives_back_what_it_was_made_of(number: int, teachers: int, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=number, max_size=number))
    absent = data.draw(
        st.lists(st.lists(st.booleans(), min_size=number, max_size=number), min_size=teachers, max_size=teachers)
    )
    passages = [np.arange(size, dtype=np.int64) for size in sizes]
    scores = [
        [None if gone else np.arange(size, dtype=np.float32) / 4 for gone, size in zip(row, sizes, strict=True)]
        for row in absent
    ]
    vector = (np.array([3, 9], dtype=np.int32), np.array([0.5, 2.0], dtype=np.float32))
    rewrites = [[None if gone else vector for gone in row] for row in absent]
    asked = query_table(queries(number, "family"), {})
    table = candidate_table(asked, [each[:1] for each in passages], passages, scores, rewrites)
    rows = pq.read_table(io.BytesIO(parquet_bytes(table))).cast(CANDIDATES).to_pylist()
    assert len(rows) == number
    for position, row in enumerate(rows):
        assert row["passages"] == passages[position].tolist()
        assert row["gold"] == passages[position][:1].tolist()
        assert row["source"] == "family"
        for teacher in range(teachers):
            gone = absent[teacher][position]
            assert row["scores"][teacher] == (None if gone else scores[teacher][position].tolist())
            assert row["rewrite_terms"][teacher] == (None if gone else [3, 9])
            assert row["rewrite_weights"][teacher] == (None if gone else [0.5, 2.0])


def test_equal_tables_give_equal_bytes_and_the_source_is_part_of_what_is_mined() -> None:
    assert parquet_bytes(query_table(queries(3), {})) == parquet_bytes(query_table(queries(3), {}))
    assert queries_fingerprint(queries(3), {}) != queries_fingerprint(queries(3, "other"), {})
    assert pa.types.is_string(query_table(queries(1), {}).schema.field("source").type)
