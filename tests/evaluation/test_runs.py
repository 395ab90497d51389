"""TREC runs and qrels survive odd ids; malformed lines are named."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.errors import DataError
from raydistill.evaluation.runs import (
    Run,
    beir_qrels_lines,
    parse_run,
    read_run,
    trec_qrels_lines,
    trec_run_lines,
)

IDS = st.text(st.characters(blacklist_characters=" \t\r\n", blacklist_categories=("Cs",)), min_size=1, max_size=12)
SCORES = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.dictionaries(IDS, st.dictionaries(IDS, SCORES, min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_run_is_the_same_after_writing_and_reading(scores: dict[str, dict[str, float]]) -> None:
    rankings = {query: tuple(sorted(found.items(), key=lambda item: -item[1])) for query, found in scores.items()}
    run = Run("system", rankings)
    assert parse_run(list(trec_run_lines(run)), "memory") == run


def test_real_ids_and_a_compressed_file(tmp_path: Path) -> None:
    run = Run(
        "my system", {"dd6b6f<::>2": (("https://a.b/c?d=1#e", 2.5), ("822086267_7384-8758-0-1374", 2.5), ("x\u00a0y", -1.0))}
    )
    path = tmp_path / "run.trec.gz"
    path.write_bytes(gzip.compress("".join(trec_run_lines(run)).encode()))
    again = read_run(str(path))
    assert again.rankings == run.rankings
    assert again.name == "my_system"


def test_order_is_by_score_and_not_by_the_rank_column() -> None:
    run = parse_run(["q Q0 a 1 1.0 t\n", "\n", "q\tQ0\tb\t2\t3.0\tt\n"], "f")
    assert run.top("q", 5) == ("b", "a")
    assert run.top("absent", 5) == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 b 2 0.5", "f.trec:2: a TREC run has 6 columns"),
        ("q Q0 b 2 0.5 tag more", "this line has 7"),
        ("q Q0 b 2 high tag", "f.trec:2: the score 'high'"),
        ("q Q0 b 2 nan tag", "f.trec:2: the score 'nan'"),
        ("q Q0 a 2 0.5 tag", "f.trec:2: passage 'a' is listed twice for query 'q'"),
    ],
)
def test_a_malformed_line_is_named(line: str, message: str) -> None:
    with pytest.raises(DataError, match=r"f\.trec") as caught:
        parse_run(["q Q0 a 1 1.0 tag", line], "f.trec")
    assert message in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    path.write_bytes(b"q Q0 a 1 1.0 t\nq Q0 \xff 2 0.5 t\n")
    with pytest.raises(DataError, match=r"run\.trec:2: not UTF-8"):
        read_run(str(path))


def test_an_empty_run_is_refused() -> None:
    with pytest.raises(DataError, match="holds no line"):
        parse_run([], "f")


def test_ids_that_a_format_cannot_hold_are_refused() -> None:
    with pytest.raises(DataError, match="passage id 'a b'"):
        list(trec_run_lines(Run("t", {"q": (("a b", 1.0),)})))
    with pytest.raises(DataError, match="query id 'q 1'"):
        list(trec_qrels_lines({"q 1": {"a": 1}}))
    with pytest.raises(DataError, match="BEIR"):
        list(beir_qrels_lines({"q": {"a\tb": 1}}))


def test_qrels_in_both_formats() -> None:
    qrels = {"c<::>1": {"p1": 1, "p2": 0}, "c<::>2": {"p1": 2}}
    assert list(trec_qrels_lines(qrels)) == ["c<::>1 0 p1 1\n", "c<::>1 0 p2 0\n", "c<::>2 0 p1 2\n"]
    assert list(beir_qrels_lines({"a b": {"p": 1}})) == ["query-id\tcorpus-id\tscore\n", "a b\tp\t1\n"]


def test_a_run_refuses_rankings_that_are_no_rankings() -> None:
    with pytest.raises(ValueError, match="twice"):
        Run("r", {"q": (("a", 1.0), ("a", 0.5))})
    with pytest.raises(ValueError, match="not sorted"):
        Run("r", {"q": (("a", 1.0), ("b", 2.0))})
