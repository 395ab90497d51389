"""BEIR and TREC judgements read alike; a fault names its line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from raydistill.conversations.qrels import check_qrels, read_qrels
from raydistill.errors import DataError


def written(folder: Path, content: str) -> str:
    path = folder / "qrels.txt"
    path.write_bytes(content.encode())
    return str(path)


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\nq 1\tp1\t2\nq 1\tp2\t0\n",
        "q 1\tp1\t2\nq 1\tp2\t0",
        "\ufeffquery-id\tcorpus-id\tscore\r\nq 1\tp1\t2\r\n\r\nq 1\tp2\t0\r\nq 1\tp2\t0\r\n",
    ],
)
def test_beir_with_and_without_header(tmp_path: Path, content: str) -> None:
    assert read_qrels(written(tmp_path, content)) == {"q 1": {"p1": 2, "p2": 0}}


def test_trec_columns_may_be_apart_by_any_white_space(tmp_path: Path) -> None:
    assert read_qrels(written(tmp_path, "31_1 0 CAR_a 2\n31_1\tQ0\tMARCO_b\t-1\n")) == {"31_1": {"CAR_a": 2, "MARCO_b": -1}}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("q1\tp2\t1.5", "grade '1.5' is not an integer"),
        ("q1 0 p2 good", "grade 'good' is not an integer"),
        ("q1\tp2", "is neither BEIR qrels"),
        ("q1 0 p2 1 extra", "is neither BEIR qrels"),
        ("q1\t\t1", "is neither BEIR qrels"),
        ("q1\tp1\t2", "judges query 'q1', passage 'p1' as 2, an earlier line as 1"),
    ],
)
def test_a_fault_names_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(DataError) as raised:
        read_qrels(written(tmp_path, f"q1\tp1\t1\n{line}\n"))
    assert "qrels.txt:2: " in str(raised.value)
    assert reason in str(raised.value)


def test_a_judged_passage_outside_the_corpus_is_named_with_its_line(tmp_path: Path) -> None:
    uri = written(tmp_path, "q1\tp1\t1\nq1\tp9\t1\nq2\tp8\t1\n")

    def find(ids: Sequence[str]) -> list[int]:
        return [0 if each == "p1" else -1 for each in ids]

    with pytest.raises(DataError, match=r"qrels\.txt:2: passage 'p9', judged for query 'q1', .*\(2 of 3 judged"):
        check_qrels(read_qrels(uri), find, uri)
    check_qrels({"q1": {"p1": 1}}, find, uri)


@pytest.mark.real_data
def test_real_trec_qrels(shared_data: Path) -> None:
    qrels = read_qrels(str(shared_data / "trec" / "cast2020" / "2020qrels.txt.gz"))
    assert len(qrels) == 208
    assert {grade for grades in qrels.values() for grade in grades.values()} <= {0, 1, 2, 3, 4}
