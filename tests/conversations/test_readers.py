"""Conversation sources become checked records; a fault ends in a sentence with its place, or in the quarantine."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from raydistill.config import ConversationSource
from raydistill.conversations.readers import read_conversations
from raydistill.conversations.records import ConversationSet
from raydistill.errors import DataError, StorageError


def mtrag_record(name: str, count: int = 2, **changes: Any) -> dict[str, Any]:
    record = {
        "conversation_id": name,
        "split": "train",
        "turns": [
            {"turn_id": n, "query_id": f"{name}<::>{n}", "user": f"question {n} of {name}?", "agent": f"answer {n}"}
            for n in range(1, count + 1)
        ],
    }
    return {**record, **changes}


def written(folder: Path, records: list[Any], qrels: str | None = None, split: str | None = None) -> ConversationSource:
    path = folder / "conversations.jsonl"
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records))
    if qrels is None:
        return ConversationSource(conversations=str(path), split=split)
    (folder / "qrels.tsv").write_text(qrels)
    return ConversationSource(conversations=str(path), qrels=str(folder / "qrels.tsv"), split=split)


def test_turns_become_queries_with_the_history_before_them_and_never_a_later_turn(tmp_path: Path) -> None:
    queries = list(read_conversations(written(tmp_path, [mtrag_record("a", count=3)]), "mtrag", 0).queries())
    assert [(query.query_id, query.depth, len(query.history)) for query in queries] == [
        ("a<::>1", 1, 0),
        ("a<::>2", 2, 1),
        ("a<::>3", 3, 2),
    ]
    assert [turn.answer for turn in queries[2].history] == ["answer 1", "answer 2"]


def test_the_split_selects_conversations_and_their_judgements(tmp_path: Path) -> None:
    qrels = "query-id\tcorpus-id\tscore\na<::>1\tp1\t1\nb<::>2\tp2\t2\n"
    source = written(tmp_path, [mtrag_record("a"), mtrag_record("b", split="test")], qrels, split="test")
    read = read_conversations(source, "mtrag", 0)
    assert [one.conversation_id for one in read.conversations] == ["b"]
    assert read.qrels == {"b<::>2": {"p2": 2}}


def test_a_split_nobody_has_names_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no conversation has split 'dev'; its splits are train"):
        read_conversations(written(tmp_path, [mtrag_record("a")], split="dev"), "mtrag", 0)


BAD_RECORDS: dict[str, tuple[Any, str]] = {
    "json": ('{"conversation_id": "x", ', "is not valid JSON"),
    "array": ([1], "must be a JSON object, not an array"),
    "no turns": (mtrag_record("x", count=0), "conversation 'x' has no turns"),
    "empty question": (
        mtrag_record("x", turns=[{"turn_id": 1, "query_id": "x<::>1", "user": "  ", "agent": ""}]),
        "conversation 'x', turn 1: field 'user' is empty",
    ),
    "no query id": (mtrag_record("x", turns=[{"turn_id": 1, "user": "what?"}]), "turn 1: has no field 'query_id'"),
    "turns out of order": (
        mtrag_record("x", turns=list(reversed(mtrag_record("x")["turns"]))),
        "turn 2: turn_id 1 does not come after 2",
    ),
    "same conversation": (mtrag_record("a", count=1), "conversation id 'a' is used by an earlier line"),
    "same query": (mtrag_record("x", turns=mtrag_record("a")["turns"]), "query id 'a<::>1' is used twice"),
    "half a surrogate pair": ('{"conversation_id": "x\\ud800", "turns": [1]}', "unpaired surrogate"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_malformed_conversation_is_named_by_line_or_quarantined(tmp_path: Path, name: str) -> None:
    record, reason = BAD_RECORDS[name]
    source = written(tmp_path, [mtrag_record("a"), record, mtrag_record("b")])
    with pytest.raises(DataError) as raised:
        read_conversations(source, "mtrag", 0)
    assert f"conversations.jsonl:2: {reason}" in str(raised.value) or (
        reason in str(raised.value) and "jsonl:2:" in str(raised.value)
    )
    assert "data.max_bad_rows" in str(raised.value)
    read = read_conversations(source, "mtrag", 1)
    assert [one.conversation_id for one in read.conversations] == ["a", "b"]
    assert [place for place, _ in read.quarantined] == [f"{source.conversations}:2"]


def test_the_row_after_the_limit_ends_the_reading(tmp_path: Path) -> None:
    source = written(tmp_path, [mtrag_record("a"), "{", "{", "{"])
    assert len(read_conversations(source, "mtrag", 3).quarantined) == 3
    with pytest.raises(DataError, match=r"jsonl:4: .*malformed row number 3"):
        read_conversations(source, "mtrag", 2)


def test_judgements_of_a_quarantined_conversation_are_not_counted_again(tmp_path: Path) -> None:
    bad = mtrag_record("x", turns=[{"turn_id": 1, "query_id": "x<::>1", "user": "", "agent": ""}])
    qrels = "query-id\tcorpus-id\tscore\na<::>1\tp1\t1\nx<::>1\tp2\t1\n"
    read = read_conversations(written(tmp_path, [mtrag_record("a"), bad], qrels), "mtrag", 1)
    assert read.qrels == {"a<::>1": {"p1": 1}}
    assert len(read.quarantined) == 1


def test_a_judgement_of_an_unknown_query_is_named_by_line(tmp_path: Path) -> None:
    qrels = "query-id\tcorpus-id\tscore\na<::>1\tp1\t1\nz<::>9\tp2\t1\n"
    source = written(tmp_path, [mtrag_record("a")], qrels)
    with pytest.raises(DataError, match=r"qrels\.tsv:3: judges query 'z<::>9', which .*conversations\.jsonl does not hold"):
        read_conversations(source, "mtrag", 0)
    assert read_conversations(source, "mtrag", 1).qrels == {"a<::>1": {"p1": 1}}


def test_byte_order_mark_windows_line_ends_and_compression_change_nothing(tmp_path: Path) -> None:
    lines = [json.dumps(mtrag_record(name)) for name in ("a", "b")]
    plain, odd = tmp_path / "plain.jsonl", tmp_path / "odd.jsonl.gz"
    plain.write_text("\n".join(lines))
    odd.write_bytes(gzip.compress(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode() + b"\r\n"))
    read = [read_conversations(ConversationSource(conversations=str(path)), "mtrag", 0) for path in (plain, odd)]
    assert read[0].conversations == read[1].conversations


def test_a_truncated_archive_is_a_damaged_file_and_not_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "conversations.jsonl.gz"
    content = gzip.compress("\n".join(json.dumps(mtrag_record(f"c{n}")) for n in range(50)).encode())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(StorageError, match="damaged"):
        read_conversations(ConversationSource(conversations=str(path)), "mtrag", 1000)


def test_the_fingerprint_follows_content_and_settings_but_not_the_folder(tmp_path: Path) -> None:
    def fingerprint(folder: str, turns: int, split: str | None) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        return read_conversations(
            written(tmp_path / folder, [mtrag_record("a", turns)], split=split), "mtrag", 0
        ).fingerprint

    first = fingerprint("one", 2, None)
    assert first == fingerprint("two", 2, None)
    assert len({first, fingerprint("one", 3, None), fingerprint("two", 2, "train")}) == 3


def topiocqa_record(conversation: int, turn: int, **changes: Any) -> dict[str, Any]:
    pieces = [piece for n in range(1, turn) for piece in (f"q{n}?", f"a{n}")]
    record = {
        "conv_id": conversation,
        "turn_id": turn,
        "question": " [SEP] ".join([*pieces, f"q{turn}?"]),
        "answers": [f"own answer {turn}"],
        "positive_ctxs": [{"title": "Page [SEP] Section", "text": "words", "passage_id": 100 + turn}],
    }
    return {**record, **changes}


def topiocqa(folder: Path, records: Any, max_bad_rows: int = 0, **source: Any) -> ConversationSet:
    path = folder / "dev.json"
    path.write_text(json.dumps(records))
    return read_conversations(ConversationSource(conversations=str(path), **source), "topiocqa", max_bad_rows)


def test_topiocqa_histories_become_one_conversation_with_gold_passages_as_they_are(tmp_path: Path) -> None:
    read = topiocqa(tmp_path, [topiocqa_record(7, 1), topiocqa_record(7, 2), topiocqa_record(7, 3), topiocqa_record(8, 1)])
    first = read.conversations[0]
    assert [(turn.query_id, turn.question, turn.answer) for turn in first.turns] == [
        ("7_1", "q1?", "a1"),
        ("7_2", "q2?", "a2"),
        ("7_3", "q3?", "own answer 3"),
    ]
    assert read.qrels == {"7_1": {"101": 1}, "7_2": {"102": 1}, "7_3": {"103": 1}, "8_1": {"101": 1}}


def test_topiocqa_turns_without_a_record_stay_in_the_history(tmp_path: Path) -> None:
    read = topiocqa(tmp_path, [topiocqa_record(7, 3)])
    last = list(read.queries())[-1]
    assert [(turn.question, turn.answer) for turn in last.history] == [("q1?", "a1"), ("q2?", "a2")]
    assert set(read.qrels) == {"7_3"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (topiocqa_record(7, 2, question="q2?"), "needs 3 utterances joined by [SEP]"),
        (topiocqa_record(7, 2, question="q1? [SEP] a1 [SEP] "), "has an empty question"),
        (topiocqa_record(7, 1, turn_id="x"), "turn_id must be an integer"),
        (topiocqa_record(7, 1), "query id '7_1' is used twice"),
        (topiocqa_record(9, 1, positive_ctxs=[{"title": "no id"}]), "has no field 'passage_id'"),
    ],
)
def test_a_malformed_topiocqa_record_is_named_by_number_or_quarantined(tmp_path: Path, record: Any, reason: str) -> None:
    records = [topiocqa_record(7, 1), record]
    with pytest.raises(DataError) as raised:
        topiocqa(tmp_path, records)
    assert "dev.json: record 2: " in str(raised.value)
    assert reason in str(raised.value)
    assert set(topiocqa(tmp_path, records, max_bad_rows=1).qrels) == {"7_1"}


def test_topiocqa_that_is_no_json_list_names_line_and_format(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text('[\n{"conv_id": 1},\n{"conv_id" 2}\n]')
    with pytest.raises(DataError, match=r"dev\.json:3: is not valid JSON"):
        read_conversations(ConversationSource(conversations=str(path)), "topiocqa", 0)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("domain", "conversations", "turns", "judged", "test_judged"),
    [("clapnq", 29, 224, 208, 71), ("cloud", 26, 205, 188, 63)],
)
def test_real_counts(shared_data: Path, domain: str, conversations: int, turns: int, judged: int, test_judged: int) -> None:
    folder = shared_data / "mtrag" / domain
    files = {"conversations": str(folder / "conversations.jsonl"), "qrels": str(folder / "qrels.tsv")}
    whole = read_conversations(ConversationSource(**files), "mtrag", 0)
    test = read_conversations(ConversationSource(**files, split="test"), "mtrag", 0)
    assert (len(whole.conversations), len(list(whole.queries()))) == (conversations, turns)
    assert (len(whole.qrels), len(test.qrels)) == (judged, test_judged)
