"""Recorded rewrites: raw texts by query id, and a malformed line that names itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydistill.conversations.records import ConversationalQuery
from raydistill.errors import DataError
from raydistill.teachers.recorded import read_recorded, recorded_rewrites


def query(query_id: str, rewrite: str = "") -> ConversationalQuery:
    return ConversationalQuery(query_id, "c", 1, "and why?", (), rewrite=rewrite)


def test_texts_are_kept_raw(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes('\ufeff{"_id": "a<::>1", "text": " \\"x\\" "}\r\n{"_id": "b", "text": ""}\r\n'.encode())
    assert read_recorded([str(path)]) == {"a<::>1": ' "x" ', "b": ""}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"_id": "b" "text": "x"}', "is not valid JSON"),
        ('{"_id": "b"}', "has no field 'text'"),
        ('{"text": "x"}', "has no field '_id'"),
        ('{"_id": "b", "text": 3}', "field 'text' must be a string, not a number"),
        ('{"_id": "a", "text": "y"}', "query id 'a' has another text in "),
    ],
)
def test_a_malformed_line_names_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f'{{"_id": "a", "text": "x"}}\n{{"_id": "a", "text": "x"}}\n{line}\n')
    with pytest.raises(DataError) as raised:
        read_recorded([str(path)])
    assert f"r.jsonl:3: {reason}" in str(raised.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no rewrite"):
        read_recorded([str(tmp_path / "r.jsonl")])


def test_files_are_read_as_one_and_a_contradiction_names_both_places(tmp_path: Path) -> None:
    first, second = tmp_path / "one.jsonl", tmp_path / "two.tsv"
    first.write_text('{"_id": "a", "text": "x"}\n{"_id": "b", "text": "y"}\n')
    second.write_bytes("\ufeff31_1\tWhat is \u2019it\u2019?\r\nb\ty\r\n".encode())
    uris = [str(first), str(second)]
    assert read_recorded(uris) == {"a": "x", "b": "y", "31_1": "What is \u2019it\u2019?"}
    second.write_text("b\tz\n")
    with pytest.raises(DataError, match=r"two\.tsv:1: query id 'b' has another text in .*one\.jsonl:2; keep one of them"):
        read_recorded(uris)


def test_a_tsv_line_without_a_tab_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.tsv").write_text("31_1 no tab\n")
    with pytest.raises(DataError, match=r"r\.tsv:1: is not of the form 'query id<TAB>text'"):
        read_recorded([str(tmp_path / "r.tsv")])


def test_what_conversations_hold_counts_only_when_asked_for_and_after_the_files(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"_id": "a", "text": "from the file"}\n{"_id": "z", "text": "of nobody"}\n')
    queries = [query("a", "held a"), query("b", "held b"), query("c")]
    both = recorded_rewrites((str(path), "conversations"), queries)
    assert (both.raw, both.held) == ({"a": "from the file"}, {"b": "held b"})
    assert ["a" in both, "b" in both, "c" in both] == [True, True, False]
    assert recorded_rewrites((str(path),), queries).held == {}
    assert recorded_rewrites(("conversations",), queries).held == {"a": "held a", "b": "held b"}


def test_questions_as_they_were_asked_come_after_files_and_conversations(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"_id": "a", "text": "from the file"}\n')
    queries = [query("a", "held a"), query("b", "held b"), query("c")]
    assert recorded_rewrites(("questions",), queries).held == dict.fromkeys("abc", "and why?")
    every = recorded_rewrites((str(path), "questions", "conversations"), queries)
    assert (every.raw, every.held) == ({"a": "from the file"}, {"b": "held b", "c": "and why?"})


@pytest.mark.real_data
def test_the_real_resolved_turns_of_cast_2019(shared_data: Path) -> None:
    path = shared_data / "trec" / "cast2019" / "evaluation_topics_annotated_resolved_v1.0.tsv"
    texts = read_recorded([str(path)])
    assert len(texts) == 479
    assert texts["31_2"] == "Is throat cancer treatable?"
