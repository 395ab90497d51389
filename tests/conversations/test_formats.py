"""Every published format is read as described; what is wrong with a file is told by a sentence."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from formats import FORMATS, cast, ikat, mtrag_task, qrecc, qrecc_scai, read_file, read_records, topiocqa, topiocqa_original

from raydistill.conversations.readers import READERS
from raydistill.conversations.records import ConversationSet
from raydistill.errors import DataError
from raydistill.teachers.recorded import read_recorded


def said(found: ConversationSet) -> dict[str, list[str]]:
    """Return what was said up to each query, the query included."""
    return {
        query.query_id: [*(text for turn in query.history for text in (turn.question, turn.answer)), query.question]
        for query in found.queries()
    }


CONVERSATION = ["q1?", "a1", "q2?", "a2", "q3?"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_turn_has_what_was_said_before_it_as_history(tmp_path: Path, name: str) -> None:
    found = read_records(tmp_path, name, FORMATS[name].valid())
    assert sorted(map(len, said(found).values())) == (
        [1, 1, 3, 3, 5] if FORMATS[name].a_record_is_a_turn else [1, 1, 1, 1, 1, 3, 3, 3, 5]
    )
    assert CONVERSATION in said(found).values()
    assert not found.quarantined
    assert not found.notes


@pytest.mark.parametrize("name", FORMATS)
def test_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path, name: str) -> None:
    text, plain, odd = FORMATS[name].text(FORMATS[name].valid()), tmp_path / "plain.json", tmp_path / "odd.json.gz"
    plain.write_text(text)
    odd.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()))
    first, second = (read_file(path, FORMATS[name].reader) for path in (plain, odd))
    assert (first.conversations, first.qrels) == (second.conversations, second.qrels)


@pytest.mark.parametrize("name", FORMATS)
def test_utf_16_is_told_from_utf_8(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(FORMATS[name].text(FORMATS[name].valid()).encode("utf-16"))
    with pytest.raises(DataError, match="UTF-8"):
        read_file(path, FORMATS[name].reader)


@pytest.mark.parametrize("name", FORMATS)
def test_a_record_that_comes_twice_is_quarantined(tmp_path: Path, name: str) -> None:
    records = FORMATS[name].valid()
    with pytest.raises(DataError, match=r"(:6|record 6): .*(twice|again|earlier line)"):
        read_records(tmp_path, name, [*records, records[1]])
    assert len(read_records(tmp_path, name, [*records, records[1]], 1).quarantined) == 1


SHIFTED: dict[str, tuple[dict[str, Any], str]] = {
    "topiocqa retriever": (topiocqa(7, 2, turn_id=1), "needs 1 utterances joined by"),
    "topiocqa original": (topiocqa_original(7, 2, Turn_no=3), "needs 5 utterances in 'Context' and 'Question' but has 3"),
    "qrecc scai": (qrecc_scai(7, 2, Turn_no=1), "turn 1 of conversation '7' needs 0 utterances in 'Context' but has 2"),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_turn_numbers_that_are_shifted_do_not_fit_their_histories(tmp_path: Path, name: str) -> None:
    record, reason = SHIFTED[name]
    with pytest.raises(DataError) as raised:
        read_records(tmp_path, name, [record])
    assert reason in str(raised.value)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("cast", "mtrag tasks")])
def test_turns_are_numbered_from_one(tmp_path: Path, name: str) -> None:
    text = json.dumps(FORMATS[name].valid()[:1])
    for field in ("turn_id", "Turn_no"):
        text = text.replace(f'"{field}": 1', f'"{field}": 0')
    with pytest.raises(DataError, match=r"must be an integer from 1, not 0"):
        read_records(tmp_path, name, json.loads(text))


@pytest.mark.parametrize(("name", "field"), [("topiocqa original", "Conversation_no"), ("mtrag tasks", "task_id")])
def test_an_id_with_an_invisible_character_is_refused(tmp_path: Path, name: str, field: str) -> None:
    record = {**FORMATS[name].valid()[0], field: "7\u200b1"}
    with pytest.raises(DataError, match=r"holds the invisible character U\+200B"):
        read_records(tmp_path, name, [record])


@pytest.mark.parametrize(
    ("reader", "name", "reason"),
    [
        ("topiocqa", "cast", "has no field 'conv_id'"),
        ("qrecc", "topiocqa retriever", "has no field 'Conversation_no'"),
        ("cast", "ikat", "has no turns"),
        ("ikat", "cast", "has no turns"),
        ("mtrag", "mtrag tasks", "has no turns"),
        ("mtrag-tasks", "mtrag", "has no field 'task_id'"),
        ("beir", "mtrag", "has no field '_id'"),
        ("trec", "mtrag", "is not inside a topic"),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path: Path, reader: str, name: str, reason: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(FORMATS[name].text(FORMATS[name].valid()))
    with pytest.raises(DataError, match=reason):
        read_file(path, reader)


# TopiOCQA.


def test_both_releases_of_topiocqa_give_the_same_conversations_and_gold(tmp_path: Path) -> None:
    turns = [(7, 1), (7, 2), (7, 3), (8, 1)]
    retriever = read_records(tmp_path, "topiocqa retriever", [topiocqa(*each) for each in turns])
    original = read_records(tmp_path, "topiocqa original", [topiocqa_original(*each) for each in turns])
    assert original.conversations == retriever.conversations
    assert original.qrels == retriever.qrels == {f"{c}_{t}": {str(100 + t): 1} for c, t in turns}
    assert original.gold_texts == retriever.gold_texts == {"101": "gold of 1", "102": "gold of 2", "103": "gold of 3"}
    assert [query.topic for query in retriever.queries()] == ["Page"] * 4


def test_a_turn_s_topic_is_the_page_of_its_first_gold_passage(tmp_path: Path) -> None:
    other = [{"title": "Other page", "text": "gold", "passage_id": 5}, {"title": "Page [SEP] Section", "passage_id": 6}]
    records = [topiocqa(7, 1), topiocqa(7, 2, positive_ctxs=other), topiocqa(7, 3, positive_ctxs=[])]
    found = list(read_records(tmp_path, "topiocqa retriever", records).queries())
    assert [query.topic for query in found] == ["Page", "Other page", ""]
    assert [turn.topic for turn in found[2].history] == ["Page", "Other page"]


def test_a_history_in_other_words_than_the_turn_itself_is_noted(tmp_path: Path) -> None:
    records = [topiocqa(7, 1, question="Q one?"), topiocqa(7, 2)]
    found = read_records(tmp_path, "topiocqa retriever", records)
    assert [note.rpartition(": ")[2] for note in found.notes] == [
        "1 turns are worded otherwise in the histories of later records; their own records count"
    ]
    assert said(found)["7_2"] == ["Q one?", "a1", "q2?"]


# QReCC.


def test_qrecc_of_scai_judges_the_turns_that_have_passages(tmp_path: Path) -> None:
    records = [qrecc_scai(7, 1), qrecc_scai(7, 2), qrecc_scai(90, 1)]
    found = read_records(tmp_path, "qrecc scai", records)
    gold = {"http://web.archive.org/web/2015/http://example.org:80/a b_/p1": 1}
    assert found.qrels == {"7_1": gold, "90_1": gold}
    assert {query.query_id: query.rewrite for query in found.queries()}["7_2"] == "whole q2?"
    assert [one.conversation_id for one in read_records(tmp_path, "qrecc scai", records, split="quac").conversations] == [
        "90"
    ]


def test_the_question_file_of_scai_has_neither_rewrites_nor_gold_and_its_truth_alone_is_refused(tmp_path: Path) -> None:
    whole = [qrecc_scai(7, 1), qrecc_scai(7, 2)]
    questions = [{key: each[key] for key in ("Conversation_no", "Turn_no", "Context", "Question")} for each in whole]
    found = read_records(tmp_path, "qrecc scai", questions)
    assert said(found)["7_2"] == ["q1?", "a1", "q2?"]
    assert not found.qrels
    truth = [{key: text for key, text in each.items() if key not in ("Context", "Question")} for each in whole]
    with pytest.raises(DataError, match="this is the ground truth alone"):
        read_records(tmp_path, "qrecc scai", truth)


def test_turn_numbers_of_the_original_that_skip_one_follow_the_history_and_are_noted(tmp_path: Path) -> None:
    found = read_records(tmp_path, "qrecc original", [qrecc(7, 1), qrecc(7, 2, Turn_no=3), qrecc(7, 3, Turn_no=4)])
    assert [(query.query_id, query.depth) for query in found.queries()] == [("7_1", 1), ("7_3", 2), ("7_4", 3)]
    assert [note.rpartition(": ")[2] for note in found.notes] == [
        "2 turns have another Turn_no than their Context says; the Context counts"
    ]


# MTRAG tasks.


def test_only_the_last_question_of_a_task_is_asked(tmp_path: Path) -> None:
    records = [mtrag_task("a", 3), mtrag_task("b", 2, task_id="b::2", Collection="mt-rag-govt")]
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\na<::>3\tp1\t1\nb<::>2\tp2\t1\n")
    found = read_records(tmp_path, "mtrag tasks", records, qrels=str(tmp_path / "qrels.tsv"))
    assert said(found) == {"a<::>3": CONVERSATION, "b<::>2": CONVERSATION[:3]}
    assert found.qrels == {"a<::>3": {"p1": 1}, "b<::>2": {"p2": 1}}
    assert list(said(read_records(tmp_path, "mtrag tasks", records, split="mt-rag-govt"))) == ["b<::>2"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"input": [{"speaker": "agent", "text": "a"}]}, "utterance 1 is by 'agent'"),
        ({"input": [{"speaker": "user", "text": "q"}, {"speaker": "agent", "text": "a"}]}, "does not end with a question"),
        ({"input": []}, "does not end with a question"),
        ({"input": "q"}, "field 'input' must be a list"),
    ],
)
def test_a_task_that_is_no_conversation_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_records(tmp_path, "mtrag tasks", [mtrag_task("a", 2, **changes)])


# iKAT personas.


@pytest.mark.parametrize("facts", [{"1": "I am tall.", "2": "I\u200bswim."}, ["I am tall.", "I\u200bswim."]])
def test_a_persona_opens_the_conversation_when_asked_for(tmp_path: Path, facts: Any) -> None:
    records = [ikat(1, 2, ptkb=facts), ikat(2, 1, ptkb=None)]
    found = read_records(tmp_path, "ikat", records, persona=True)
    assert said(found) == {
        "1-1_1": ["I am tall. Iswim.", "", "q1?"],
        "1-1_2": ["I am tall. Iswim.", "", "q1?", "a1", "q2?"],
        "2-1_1": ["q1?"],
    }
    assert [query.depth for query in found.queries()] == [1, 2, 1]
    assert said(read_records(tmp_path, "ikat", records))["1-1_1"] == ["q1?"]
    with pytest.raises(DataError, match="persona needs the facts of iKAT topics"):
        read_records(tmp_path, "cast", [cast(1, 1)], persona=True)


# Queries that stand alone.


def test_the_three_forms_of_queries_give_the_same_conversations(tmp_path: Path) -> None:
    contents = {
        "beir": '{"_id": "301", "text": "organized crime", "metadata": {}}\n{"_id": "q 2", "text": "b"}\n',
        "tsv": "qid\tquery\n301\torganized crime\nq 2\tb\n",
        "trec": "<top>\n<num> Number: 301\n<title> organized\ncrime\n\n<desc> Description:\nwho?\n<narr>\nlong\n</top>\n"
        "<top>\n<num>q 2</num>\n<title></title>\n<desc>b</desc>\n</top>\n",
    }
    found = {}
    for reader, content in contents.items():
        (tmp_path / reader).write_text(content)
        found[reader] = read_file(tmp_path / reader, reader).conversations
    assert found["beir"] == found["tsv"] == found["trec"]
    assert [(turn.query_id, turn.question, turn.rewrite) for one in found["trec"] for turn in one.turns] == [
        ("301", "organized crime", "organized crime"),
        ("q 2", "b", "b"),
    ]


BAD_QUERIES = {
    "beir": ('{"_id": "1"}', "has no field 'text'"),
    "tsv": ("1\ta\tb", "has 3 tab-separated columns instead of 2"),
    "trec": ("<top>\n<title> no number\n</top>", "field 'num' is empty"),
}
QUERY = {"beir": '{"_id": "1", "text": "a"}', "tsv": "1\ta", "trec": "<top>\n<num> 1\n<title> a\n</top>"}


@pytest.mark.parametrize("reader", BAD_QUERIES)
def test_malformed_and_repeated_queries_are_counted(tmp_path: Path, reader: str) -> None:
    bad, reason = BAD_QUERIES[reader]
    path = tmp_path / "queries"
    path.write_text("\n".join([QUERY[reader], bad, QUERY[reader]]))
    with pytest.raises(DataError) as raised:
        read_file(path, reader)
    assert reason in str(raised.value)
    found = read_file(path, reader, max_bad_rows=2)
    assert [one.conversation_id for one in found.conversations] == ["1"]
    assert [problem for _, problem in found.quarantined][1] == "query id '1' is used twice"


# Releases.


def test_a_file_that_is_nearly_a_release_and_one_that_is_an_older_release_are_noted(tmp_path: Path) -> None:
    turns = [(conversation, turn) for conversation in range(205) for turn in range(1, 13)][:2450]
    found = read_records(tmp_path, "topiocqa retriever", [topiocqa(*each) for each in turns])
    assert "holds 2,450 turns in 205 conversations, 2,450 judged, nearly topiocqa-dev (2,514 turns in 205" in found.notes[0]
    turns = [(conversation, turn) for conversation in range(205) for turn in range(1, 14)][:2525]
    found = read_records(tmp_path, "topiocqa retriever", [topiocqa(*each) for each in turns])
    assert "is topiocqa-dev-older: an older release" in found.notes[0]


def test_a_named_release_must_have_its_counts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds 1 turns in 1 conversations, but cast-2020 has 216 turns in 25"):
        read_records(tmp_path, "cast", [cast(1, 1)], release="cast-2020")


REAL = {
    "cast-2019": ("cast2019/evaluation_topics_v1.0.json", "cast2019/2019qrels.txt.gz"),
    "cast-2020": ("cast2020/2020_manual_evaluation_topics_v1.0.json", "cast2020/2020qrels.txt.gz"),
    "cast-2021": ("cast2021/2021_manual_evaluation_topics_v1.0.json", "cast2021/trec-cast-qrels-docs.2021.qrel.gz"),
    "cast-2022": ("cast2022/2022_evaluation_topics_tree_v1.0.json", None),
    "ikat-2023": ("ikat2023/2023_test_topics.json", None),
    "ikat-2024": ("ikat2024/2024_test_topics.json", None),
    "ikat-2025": ("ikat2025/2025_test_topics.json", None),
}


@pytest.mark.real_data
@pytest.mark.parametrize("release", REAL)
def test_real_topic_files_and_their_qrels_are_the_releases_that_they_are(shared_data: Path, release: str) -> None:
    topics, qrels = REAL[release]
    source = {"qrels": str(shared_data / "trec" / qrels)} if qrels else {}
    reader = release.partition("-")[0]
    found = read_file(shared_data / "trec" / topics, reader, release=release, **source)
    assert not found.notes
    assert not found.quarantined


@pytest.mark.real_data
def test_real_qrels_of_another_year_are_refused(shared_data: Path) -> None:
    folder = shared_data / "trec"
    with pytest.raises(DataError, match=r"judges query '31_1', which .* does not hold"):
        read_file(folder / REAL["cast-2020"][0], "cast", qrels=str(folder / "cast2019" / "2019qrels.txt.gz"))


@pytest.mark.real_data
def test_the_rewrites_of_2019_belong_to_its_topics(shared_data: Path) -> None:
    folder = shared_data / "trec" / "cast2019"
    rewrites = read_recorded([str(folder / "evaluation_topics_annotated_resolved_v1.0.tsv")])
    found = read_file(folder / "evaluation_topics_v1.0.json", "cast")
    assert set(rewrites) == {query.query_id for query in found.queries()}


@pytest.mark.real_data
@pytest.mark.parametrize(("year", "facts"), [(2023, 25), (2024, 17), (2025, 17)])
def test_every_real_persona_opens_its_conversation(shared_data: Path, year: int, facts: int) -> None:
    found = read_file(shared_data / "trec" / f"ikat{year}" / f"{year}_test_topics.json", "ikat", persona=True)
    opened = [one for one in found.conversations if one.asked_before and len(one.turns[0].question.split()) > 20]
    assert len(opened) == facts


def test_every_reader_has_a_test_of_its_format() -> None:
    assert {each.reader for each in FORMATS.values()} | BAD_QUERIES.keys() | {"prepared"} == READERS.keys()
