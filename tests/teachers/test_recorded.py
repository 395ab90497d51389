"""Recorded rewrites: raw texts by query id, and a malformed line that names itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydistill.errors import DataError
from raydistill.teachers.recorded import read_recorded


def test_texts_are_kept_raw(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes('\ufeff{"_id": "a<::>1", "text": " \\"x\\" "}\r\n{"_id": "b", "text": ""}\r\n'.encode())
    assert read_recorded(str(path)) == {"a<::>1": ' "x" ', "b": ""}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"_id": "b" "text": "x"}', "is not valid JSON"),
        ('{"_id": "b"}', "has no field 'text'"),
        ('{"text": "x"}', "has no field '_id'"),
        ('{"_id": "b", "text": 3}', "field 'text' must be a string, not a number"),
        ('{"_id": "a", "text": "y"}', "query id 'a' has another text on an earlier line"),
    ],
)
def test_a_malformed_line_names_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f'{{"_id": "a", "text": "x"}}\n{{"_id": "a", "text": "x"}}\n{line}\n')
    with pytest.raises(DataError) as raised:
        read_recorded(str(path))
    assert f"r.jsonl:3: {reason}" in str(raised.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no rewrite"):
        read_recorded(str(tmp_path / "r.jsonl"))
