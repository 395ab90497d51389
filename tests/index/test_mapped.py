"""Mapped tables: what was written can be read in any order, and no file stays behind it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pytest

from raydistill.index.mapped import mapped_table

SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.large_string())])


def test_a_table_outlives_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = [{"number": number, "text": "x" * number} for number in range(300)]
    table = mapped_table(
        SCHEMA, (pa.RecordBatch.from_pylist(rows[start : start + 70], SCHEMA) for start in range(0, 300, 70))
    )
    assert list(tmp_path.iterdir()) == [], "a process that is killed now leaves nothing"
    assert table.take(pa.array([299, 0, 150])).to_pylist() == [rows[299], rows[0], rows[150]]


def test_a_table_without_batches_has_its_columns() -> None:
    table = mapped_table(SCHEMA, iter(()))
    assert table.num_rows == 0
    assert table.schema.equals(SCHEMA)
