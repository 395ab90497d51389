"""iKAT topics of every year become conversations with their answers and human rewrites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydistill.config import ConversationSource
from raydistill.conversations.readers import read_conversations
from raydistill.conversations.records import ConversationSet
from raydistill.errors import DataError


def read(folder: Path, records: Any, max_bad_rows: int = 0, **source: Any) -> ConversationSet:
    path = folder / "topics.json"
    path.write_text(json.dumps(records))
    return read_conversations(ConversationSource(conversations=str(path), reader="ikat", **source), "mtrag", max_bad_rows)


def turn(number: Any, utterance: str = "utterance", **fields: Any) -> dict[str, Any]:
    said = {utterance: f"question {number}?", "resolved_utterance": f"rewrite {number}", "response": f"answer {number}"}
    return {"turn_id": number, **said, **fields}


@pytest.mark.parametrize(("turns", "utterance"), [("turns", "utterance"), ("responses", "user_utterance")])
def test_the_field_names_of_every_year_are_read_alike(tmp_path: Path, turns: str, utterance: str) -> None:
    record = {"number": "9-1", "title": "t", "ptkb": ["I am private"], turns: [turn(1, utterance), turn(2, utterance)]}
    first, second = read(tmp_path, [record]).queries()
    assert (first.query_id, first.question, first.rewrite) == ("9-1_1", "question 1?", "rewrite 1")
    assert [(each.question, each.answer) for each in second.history] == [("question 1?", "answer 1")]
    assert (second.answer, second.facts) == ("answer 2", ("I am private",))


def test_the_persona_of_every_year_becomes_facts(tmp_path: Path) -> None:
    record = {"number": "1", "turns": [turn(1)], "ptkb": {"1": "I run.", "2": " I have\ntwo sisters. ", "3": ""}}
    (query,) = read(tmp_path, [record]).queries()
    assert query.facts == ("I run.", "I have two sisters.")


def test_ids_that_two_years_share_are_told_apart_by_a_prefix_and_judgements_follow(tmp_path: Path) -> None:
    (tmp_path / "qrels.txt").write_text("0_2 0 p1 1\n")
    source = {"name": "ikat2024", "prefix_ids": True, "qrels": str(tmp_path / "qrels.txt")}
    found = read(tmp_path, [{"number": 0, "turns": [turn(1), turn(2)]}], **source)
    assert [each.query_id for each in found.queries()] == ["ikat2024:0_1", "ikat2024:0_2"]
    assert found.qrels == {"ikat2024:0_2": {"p1": 1}}
    assert {each.source for each in found.queries()} == {"ikat2024"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (3, "is not a JSON object"),
        ({"number": "2"}, "conversation '2' has no turns"),
        ({"number": "2", "turns": [turn(2), turn(1)]}, "conversation '2', turn 2: turn_id 1 does not come after 2"),
        ({"number": "2", "turns": [turn("1")]}, "turn 1: turn_id must be an integer from 1, not '1'"),
        ({"number": "2", "turns": [turn(1, utterance="said")]}, "turn 1: has no utterance"),
        ({"number": "1", "turns": [turn(1)]}, "conversation '1' is there twice"),
        ({"number": "2", "turns": [turn(1)], "ptkb": [3]}, "conversation '2': ptkb must hold sentences"),
    ],
)
def test_a_malformed_conversation_is_named_or_quarantined_whole(tmp_path: Path, record: Any, reason: str) -> None:
    records = [{"number": "1", "turns": [turn(1)]}, record]
    with pytest.raises(DataError) as raised:
        read(tmp_path, records)
    assert "topics.json: record 2: " in str(raised.value)
    assert reason in str(raised.value)
    assert [each.query_id for each in read(tmp_path, records, max_bad_rows=1).queries()] == ["1_1"]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("year", "conversations", "turns", "rewrites"), [(2023, 25, 332, 331), (2024, 17, 218, 218), (2025, 17, 188, 188)]
)
def test_real_counts(shared_data: Path, year: int, conversations: int, turns: int, rewrites: int) -> None:
    path = shared_data / "trec" / f"ikat{year}" / f"{year}_test_topics.json"
    found = read_conversations(ConversationSource(conversations=str(path), reader="ikat"), "mtrag", 0)
    queries = list(found.queries())
    assert (len(found.conversations), len(queries)) == (conversations, turns)
    assert sum(bool(each.rewrite) for each in queries) == rewrites
    assert all(each.answer for one in found.conversations for each in one.turns)
