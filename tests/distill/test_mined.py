"""Rows of mined candidates: whatever way Arrow keeps them, a query is what was written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raydistill.distill.mined import COLUMNS, REWRITES, SOURCE, STUDENT_BEST, MinedTable
from raydistill.index.candidates import CANDIDATES

ROWS: list[dict[str, Any]] = [
    {
        "query_id": f"c<::>{depth}",
        "conversation_id": "c",
        "source": source,
        "depth": depth,
        "question": "what" * depth,
        "history": [{"question": "q" * turn, "answer": "" if turn == 2 else "ä"} for turn in range(1, depth)],
        "gold": [3] * (depth > 1),
        "passages": list(range(depth)),
        "scores": [[0.5 * each for each in range(depth)], None] if depth != 2 else [None, [1.0, None]],
        "rewrite_terms": [[1, 4], None if depth == 3 else [4, 9]],
        "rewrite_weights": [[1.0, 2.0], None if depth == 3 else [4.0, 1.0]],
        "student_best": None if depth == 1 else [depth - 1, 0],
    }
    for depth, source in ((1, "a"), (2, "b"), (3, "a"), (4, "b"))
]


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=CANDIDATES)


def expected_scores(row: dict[str, Any]) -> np.ndarray:
    absent = [None] * len(row["passages"])
    return np.array([absent if of is None else of for of in row["scores"]], dtype=np.float32)


KEPT = {
    "whole": table(ROWS),
    "chunks": pa.concat_tables([table(ROWS[:1]), table([]), table(ROWS[1:])]),
    "slices": pa.concat_tables([table([ROWS[3], *ROWS[:2]]).slice(1), table([ROWS[0], *ROWS[2:], ROWS[0]]).slice(1, 2)]),
}


@pytest.mark.parametrize("how", KEPT)
def test_a_query_is_the_row_that_was_written(how: str) -> None:
    found = MinedTable(KEPT[how])
    assert len(found) == len(ROWS)
    for number, row in enumerate(ROWS):
        query = found.query(number)
        assert (query.query_id, query.depth, query.question) == (row["query_id"], row["depth"], row["question"])
        assert query.history == tuple((turn["question"], turn["answer"]) for turn in row["history"])
        for array, wanted in ((query.gold, row["gold"]), (query.passages, row["passages"])):
            assert (array.dtype, array.tolist()) == (np.int64, wanted)
        assert query.student_best.tolist() == (row["student_best"] or [])
        assert query.scores.dtype == np.float32
        np.testing.assert_array_equal(query.scores, expected_scores(row))
        one_teacher = row["rewrite_terms"][1] is None
        assert query.rewrite[0].tolist() == ([1, 4] if one_teacher else [1, 4, 9])
        assert query.rewrite[1].tolist() == ([1.0, 2.0] if one_teacher else [0.5, 3.0, 0.5])
    assert found.depths.tolist() == [1, 2, 3, 4]
    sources = found.sources().tolist()
    assert sources == [sources[0], sources[1]] * 2
    assert sources[0] != sources[1]
    lengths = [
        len(row["question"]) + sum(len(turn["question"]) + len(turn["answer"]) for turn in row["history"]) for row in ROWS
    ]
    assert found.text_lengths().tolist() == lengths


def test_what_was_not_read_is_empty_and_an_order_by_it_is_refused() -> None:
    found = MinedTable(KEPT["whole"].select(COLUMNS))
    query = found.query(1)
    assert (len(query.student_best), len(query.rewrite[0]), len(query.rewrite[1])) == (0, 0, 0)
    with pytest.raises(ValueError, match="'source'"):
        found.sources()
    assert {*REWRITES, SOURCE, STUDENT_BEST}.isdisjoint(COLUMNS)


def test_a_table_may_be_empty() -> None:
    assert len(MinedTable(table([]))) == 0
