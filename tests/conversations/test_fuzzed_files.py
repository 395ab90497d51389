"""Whatever a file holds, reading it ends in a sentence or in conversations and a counted quarantine; no record vanishes.

The default run tries a few dozen files a format; the thousand are marked slow.
"""

from __future__ import annotations

import copy
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from formats import FORMATS, Format, read_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raydistill.config import TurnColumns
from raydistill.conversations.hub import conversations_of_rows
from raydistill.conversations.records import ConversationSet
from raydistill.conversations.rows import Quarantine
from raydistill.errors import DataError

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
THOUSAND = settings(FEW, max_examples=1000)

JUNK: list[Any] = [None, True, -1, 0, 2, 10**30, 1.5, float("nan"), float("inf"), "", "  ", "\ud800", "\x00", "\u2028"]
JUNK += ["7", "odd \u00a0\u200b\U0001f600 text", "[SEP]", "a [SEP] b [SEP] c", "x" * 5000, [], [None], [[]], ["q", "a"]]
JUNK += [{}, {"id": None}, {"text": "t"}, [{"passage_id": "p"}], [{"speaker": "user", "text": "q?"}], [{"number": 1}]]
CHANGES = st.lists(st.tuples(st.integers(0, 2**16), st.sampled_from(["replace", "delete", "repeat", "swap"])), max_size=4)


def spots(node: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a tree of plain values."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    return [(node, key) for key in keys] + [spot for key in keys for spot in spots(node[key])]


def changed(records: list[Any], changes: list[tuple[int, str]]) -> list[Any]:
    """Return the records with something replaced, deleted, repeated or swapped, anywhere in them."""
    records = copy.deepcopy(records)
    for seed, kind in changes:
        draw = random.Random(seed)
        if kind == "repeat":
            records.insert(draw.randrange(len(records) + 1), copy.deepcopy(draw.choice(records or [None])))
            continue
        found = spots(records)
        if not found:
            break
        (container, key), (other, other_key) = draw.choice(found), draw.choice(found)
        if kind == "replace":
            container[key] = copy.deepcopy(draw.choice(JUNK))
        elif kind == "delete":
            del container[key]
        else:
            container[key] = copy.deepcopy(other[other_key])
    return records


def check_texts(found: ConversationSet) -> None:
    for query in found.queries():
        assert query.query_id.strip()
        assert query.question.strip()
        for text in (query.query_id, query.question, query.rewrite, *(turn.answer for turn in query.history)):
            text.encode()
    assert all(isinstance(grade, int) for grades in found.qrels.values() for grade in grades.values())


def read_or_sentence(path: Path, reader: str) -> ConversationSet | None:
    """Return what a file holds, or None when it is refused with a sentence that names it."""
    try:
        return read_file(path, reader, max_bad_rows=1000)
    except DataError as error:
        refusal = str(error)
    assert str(path) in refusal
    return None


def check_records(path: Path, name: str, changes: list[tuple[int, str]]) -> None:
    form: Format = FORMATS[name]
    records = changed(form.valid(), changes)
    path.write_text(form.text(records))
    found = read_or_sentence(path, form.reader)
    if found is None:
        return
    check_texts(found)
    left_out = {int(re.findall(r"(?:record |:)([0-9]+)$", place)[0]) for place, reason in found.quarantined if reason}
    assert len(left_out) == len(found.quarantined)
    ids = {turn.query_id for one in found.conversations for turn in one.asked}
    for number, record in enumerate(records, start=1):
        if number not in left_out:
            assert set(map(str, form.ids(record))) <= ids


def check_bytes(path: Path, name: str, seed: int, junk: bytes) -> None:
    draw = random.Random(seed)
    content = bytearray(FORMATS[name].text(FORMATS[name].valid()).encode())
    place = draw.randrange(len(content))
    content[place : place + draw.choice([0, 0, 1, len(junk), len(content)])] = junk
    path.write_bytes(content)
    found = read_or_sentence(path, FORMATS[name].reader)
    if found is not None:
        check_texts(found)


QUERY_LINES = {
    "beir": b'{"_id": "%d", "text": "words"}\n',
    "tsv": b"%d\twords\n",
    "trec": b"<top>\n<num>%d\n<title>w\n</top>\n",
}


def check_query_lines(path: Path, reader: str, seed: int, junk: bytes) -> None:
    content = bytearray(b"".join(QUERY_LINES[reader] % number for number in range(4)))
    place = random.Random(seed).randrange(len(content))
    content[place:place] = junk
    path.write_bytes(content)
    found = read_or_sentence(path, reader)
    if found is None:
        return
    check_texts(found)
    if reader != "trec":
        lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip(b"\r\n")]
        blank = sum(not line.decode(errors="replace").strip() for line in lines)
        assert len(found.conversations) + len(found.quarantined) >= len(lines) - blank - 1  # one may be a header


TURNS = {("a", 1): [], ("a", 2): ["q1?", "a1"], ("b", 1): [{"role": "user", "content": "q?"}]}
ROWS = [
    {"c": name, "n": turn, "q": f"q{turn}?", "h": said if name == "a" else [], "m": said or ["q?"], "g": ["p1"]}
    for (name, turn), said in TURNS.items()
]
MAPPINGS = {
    "turns": {"conversation": "c", "turn": "n", "question": "q", "gold": "g"},
    "histories": {"conversation": "c", "question": "q", "history": "h", "gold": "g"},
    "messages": {"messages": "m", "gold": "g"},
}


def check_rows(name: str, changes: list[tuple[int, str]]) -> None:
    rows = changed(ROWS, changes)
    quarantine = Quarantine(1000)
    columns = TurnColumns(**MAPPINGS[name])
    whole = [row if isinstance(row, dict) else {} for row in rows]  # `datasets` gives nothing but rows
    named = [{**dict.fromkeys("cnqhmg"), **row} for row in whole]
    file = conversations_of_rows(named, "d", columns, quarantine)
    found = ConversationSet(file.conversations, file.qrels, "")
    check_texts(found)
    records = [turn for one in file.conversations for turn in one.turns] if name == "turns" else file.conversations
    if name == "histories":
        assert len(list(found.queries())) + len(quarantine.rows) >= len(rows)
    else:
        assert len(records) + len(quarantine.rows) == len(rows)


SEEDS = st.integers(0, 2**16)
BYTES = st.binary(max_size=30) | st.sampled_from(
    [b"\xff\xfe", b"\xef\xbb\xbf", b"\x00", b"\\ud800", b"[" * 2000, b"9" * 5000]
)


@pytest.mark.parametrize("name", FORMATS)
@FEW
@given(CHANGES)
def test_no_record_vanishes(tmp_path: Path, name: str, changes: list[tuple[int, str]]) -> None:
    check_records(tmp_path / "file.json", name, changes)


@pytest.mark.parametrize("name", FORMATS)
@FEW
@given(SEEDS, BYTES)
def test_bytes_out_of_place_end_in_a_sentence_or_a_quarantine(tmp_path: Path, name: str, seed: int, junk: bytes) -> None:
    check_bytes(tmp_path / "file.json", name, seed, junk)


@pytest.mark.parametrize("reader", QUERY_LINES)
@FEW
@given(SEEDS, BYTES)
def test_no_query_vanishes(tmp_path: Path, reader: str, seed: int, junk: bytes) -> None:
    check_query_lines(tmp_path / "queries", reader, seed, junk)


@pytest.mark.parametrize("name", MAPPINGS)
@FEW
@given(CHANGES)
def test_no_row_of_a_data_set_vanishes(name: str, changes: list[tuple[int, str]]) -> None:
    check_rows(name, changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPPINGS)
@THOUSAND
@given(CHANGES)
def test_no_row_of_a_thousand_data_sets_vanishes(name: str, changes: list[tuple[int, str]]) -> None:
    check_rows(name, changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@THOUSAND
@given(CHANGES)
def test_no_record_of_a_thousand_files_vanishes(tmp_path: Path, name: str, changes: list[tuple[int, str]]) -> None:
    check_records(tmp_path / "file.json", name, changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@THOUSAND
@given(SEEDS, BYTES)
def test_a_thousand_files_with_bytes_out_of_place(tmp_path: Path, name: str, seed: int, junk: bytes) -> None:
    check_bytes(tmp_path / "file.json", name, seed, junk)


@pytest.mark.slow
@pytest.mark.parametrize("reader", QUERY_LINES)
@THOUSAND
@given(SEEDS, BYTES)
def test_no_query_of_a_thousand_files_vanishes(tmp_path: Path, reader: str, seed: int, junk: bytes) -> None:
    check_query_lines(tmp_path / "queries", reader, seed, junk)


def test_changes_reach_every_level_of_a_record() -> None:
    original = FORMATS["cast"].valid()
    different = {json.dumps(changed(original, [(seed, "replace")]), sort_keys=True) for seed in range(200)}
    assert len(different) > 100
