"""CAsT topics of every year become conversations; what the paths of a tree share is asked once and is everyone's history."""

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
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(records, indent=1).replace("\n", "\r\n").encode())
    return read_conversations(ConversationSource(conversations=str(path), reader="cast", **source), "mtrag", max_bad_rows)


def turn(number: int, **fields: Any) -> dict[str, Any]:
    return {"number": number, "raw_utterance": f"question {number}?", **fields}


def user(number: str, parent: str | None = None) -> dict[str, Any]:
    said = {"utterance": f"question {number}?", "manual_rewritten_utterance": f"rewrite {number}"}
    return {"number": number, "participant": "User", **said, **({"parent": parent} if parent else {})}


def system(number: str, parent: str) -> dict[str, Any]:
    return {"number": number, "participant": "System", "parent": parent, "response": f"answer {number}"}


TREE = {
    "number": 132,
    "turn": [
        user("1-1"),
        system("1-2", "1-1"),
        user("1-3", "1-2"),
        system("1-4", "1-3"),
        system("2-1", "1-1"),
        user("2-2", "2-1"),
        user("3-1", "1-2"),
        system("4-1", "1-3"),
    ],
}


def exchanges(found: ConversationSet) -> dict[str, list[tuple[str, str]]]:
    return {each.query_id: [(turn.question, turn.answer) for turn in each.history] for each in found.queries()}


def test_turns_keep_their_rewrite_and_the_text_that_answered_them(tmp_path: Path) -> None:
    turns = [
        turn(1, passage="said \u200bin\xa0 return ", manual_rewritten_utterance=" rewrite\t1"),
        turn(2, manual_canonical_result_id="MARCO_1"),
    ]
    first, second = read(tmp_path, [{"number": 31, "turn": turns}]).queries()
    assert (first.query_id, first.depth, first.rewrite) == ("31_1", 1, "rewrite 1")
    assert (second.query_id, second.depth, second.rewrite) == ("31_2", 2, "")
    assert [(each.question, each.answer) for each in second.history] == [("question 1?", "said in return")]


def test_a_tree_becomes_its_paths_and_every_turn_is_asked_once_with_its_own_history(tmp_path: Path) -> None:
    found = read(tmp_path, [TREE])
    assert [[each.query_id for each in one.asked] for one in found.conversations] == [
        ["132_1-1", "132_1-3"],
        ["132_2-2"],
        ["132_3-1"],
    ]
    assert {one.conversation_id for one in found.conversations} == {"132"}
    start = [("question 1-1?", "answer 1-2")]
    assert exchanges(found) == {
        "132_1-1": [],
        "132_1-3": start,
        "132_2-2": [("question 1-1?", "answer 2-1")],
        "132_3-1": start,
    }
    assert {each.query_id: each.depth for each in found.queries()}["132_2-2"] == 2


def test_flattened_paths_give_the_same_queries_as_the_tree(tmp_path: Path) -> None:
    def said(number: str, response: str | None = None) -> dict[str, Any]:
        whole = {key: value for key, value in user(number).items() if key != "participant"}
        return {**whole, **({"response": f"answer {response}"} if response else {})}

    paths = [
        [said("1-1", "1-2"), said("1-3", "1-4")],
        [said("1-1", "2-1"), said("2-2")],
        [said("1-1", "1-2"), said("3-1")],
        [said("1-1", "1-2"), said("1-3", "4-1")],
    ]
    flattened = read(tmp_path, [{"number": 132, "turn": path} for path in paths])
    assert exchanges(flattened) == exchanges(read(tmp_path, [TREE]))


BAD_TOPICS: dict[str, tuple[Any, str]] = {
    "no object": (["x"], "is not a JSON object"),
    "no turns": ({"number": 9, "turn": []}, "topic '9' has no turns"),
    "no number": ({"turn": [turn(1)]}, "has no field 'number'"),
    "no utterance": ({"number": 9, "turn": [turn(1, raw_utterance=" \u200b")]}, "topic '9': turn '1' has no utterance"),
    "turn twice": ({"number": 9, "turn": [turn(1), turn(1)]}, "turn '1' is there twice"),
    "id of another topic": ({"number": 31, "turn": [turn(1, raw_utterance="other?")]}, "names another question"),
    "orphan": ({"number": 9, "turn": [user("1-1"), system("1-2", "0-9")]}, "answers '0-9', which does not come before"),
    "no question": (
        {"number": 9, "turn": [{**system("1-1", "x"), "parent": None}, user("1-2", "1-1")]},
        "'1-1' of the system answers no question",
    ),
    "a third party": ({"number": 9, "turn": [{**user("1-1"), "participant": "Judge"}]}, "is by 'Judge'"),
}


@pytest.mark.parametrize("name", BAD_TOPICS)
def test_a_malformed_topic_is_named_or_quarantined_whole(tmp_path: Path, name: str) -> None:
    record, reason = BAD_TOPICS[name]
    good = {"number": 31, "turn": [turn(1)]}
    with pytest.raises(DataError) as raised:
        read(tmp_path, [good, record])
    assert "topics.json: record 2: " in str(raised.value)
    assert reason in str(raised.value)
    assert [each.query_id for each in read(tmp_path, [good, record], max_bad_rows=1).queries()] == ["31_1"]


def test_judgements_of_a_quarantined_topic_are_not_counted_again(tmp_path: Path) -> None:
    (tmp_path / "qrels.txt").write_text("31_1 0 p1 2\n9_1 0 p2 1\n")
    records = [{"number": 31, "turn": [turn(1)]}, {"number": 9, "turn": [turn(1, raw_utterance="")]}]
    found = read(tmp_path, records, max_bad_rows=1, qrels=str(tmp_path / "qrels.txt"))
    assert found.qrels == {"31_1": {"p1": 2}}


COUNTS = {
    "cast2019/evaluation_topics_v1.0.json": (50, 50, 479, 0),
    "cast2020/2020_manual_evaluation_topics_v1.0.json": (25, 25, 216, 216),
    "cast2021/2021_manual_evaluation_topics_v1.0.json": (26, 26, 239, 239),
    "cast2022/2022_evaluation_topics_tree_v1.0.json": (18, 50, 205, 205),
    "cast2022/2022_evaluation_topics_flattened_duplicated_v1.0.json": (18, 50, 205, 205),
}


def real(shared_data: Path, name: str, **source: Any) -> ConversationSet:
    path = str(shared_data / "trec" / name)
    return read_conversations(ConversationSource(conversations=path, reader="cast", **source), "mtrag", 0)


@pytest.mark.real_data
@pytest.mark.parametrize("name", COUNTS)
def test_real_counts_of_topics_paths_turns_and_rewrites(shared_data: Path, name: str) -> None:
    found = real(shared_data, name)
    queries = list(found.queries())
    topics = {one.conversation_id for one in found.conversations}
    counts = (len(topics), len(found.conversations), len(queries), sum(bool(each.rewrite) for each in queries))
    assert counts == COUNTS[name]


@pytest.mark.real_data
def test_the_two_files_of_2022_hold_the_same_queries_with_the_same_histories(shared_data: Path) -> None:
    *_, tree, flattened = (real(shared_data, name) for name in COUNTS)
    assert exchanges(tree) == exchanges(flattened)


@pytest.mark.real_data
def test_the_judged_turns_of_2020_are_turns_of_its_topics(shared_data: Path) -> None:
    name = "cast2020/2020_manual_evaluation_topics_v1.0.json"
    found = real(shared_data, name, qrels=str(shared_data / "trec" / "cast2020" / "2020qrels.txt.gz"))
    assert len(found.qrels) == 208
