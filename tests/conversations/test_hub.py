"""Any Hugging Face data set is streamed with the columns that a source maps; local folders stand for the hub here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from raydistill.config import ConversationSource, DatasetConfig, TurnColumns
from raydistill.conversations.readers import read_conversations
from raydistill.conversations.records import ConversationSet
from raydistill.errors import DataError

TURNS = [
    {"dialog": "a", "n": 1, "ask": "q1?", "reply": "a1", "whole": "full q1?", "about": "opera", "docs": ["p1", "p2"]},
    {"dialog": "a", "n": 2, "ask": "q2?", "reply": "a2", "whole": "full q2?", "about": "", "docs": []},
    {"dialog": "b", "n": 1, "ask": "q3?", "reply": "", "whole": "", "about": "tea", "docs": ["7"]},
]
TURN_COLUMNS = {
    "conversation": "dialog",
    "turn": "n",
    "question": "ask",
    "answer": "reply",
    "rewrite": "whole",
    "topic": "about",
    "gold": "docs",
}


def dataset(folder: Path, rows: list[dict[str, Any]], form: str = "parquet", split: str = "train") -> Path:
    """Write rows as a data set that `load_dataset` reads, in two files."""
    folder.mkdir(exist_ok=True)
    for number, some in enumerate(filter(None, (rows[:2], rows[2:]))):
        path = folder / f"{split}-0000{number}-of-00002.{form}"
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist(some, schema=pa.Table.from_pylist(rows).schema), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def read(folder: Path, max_bad_rows: int = 0, split: str = "train", **columns: Any) -> ConversationSet:
    settings = DatasetConfig(split=split, columns=TurnColumns(**columns))
    source = ConversationSource(reader="huggingface", conversations=str(folder), dataset=settings)
    return read_conversations(source, "mtrag", max_bad_rows)


def queries(found: ConversationSet) -> dict[str, list[str]]:
    return {
        each.query_id: [*(text for turn in each.history for text in (turn.question, turn.answer)), each.question]
        for each in found.queries()
    }


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_rows_that_are_turns_become_conversations_with_their_gold(tmp_path: Path, form: str) -> None:
    found = read(dataset(tmp_path / "d", TURNS, form), **TURN_COLUMNS)
    assert queries(found) == {"a_1": ["q1?"], "a_2": ["q1?", "a1", "q2?"], "b_1": ["q3?"]}
    assert found.qrels == {"a_1": {"p1": 1, "p2": 1}, "b_1": {"7": 1}}
    assert [each.rewrite for each in found.queries()] == ["full q1?", "full q2?", ""]
    assert [each.topic for each in found.queries()] == ["opera", "", "tea"]


def test_rows_that_are_conversations_of_messages(tmp_path: Path) -> None:
    said = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "q1?"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2?"},
    ]
    folder = dataset(
        tmp_path / "d", [{"chat": said, "doc": 5}, {"chat": said[:2], "doc": None}, {"chat": said[:3], "doc": 6}]
    )
    found = read(folder, messages="chat", gold="doc")
    assert queries(found) == {"1_1": ["q1?"], "1_2": ["q1?", "a1", "q2?"], "2_1": ["q1?"], "3_1": ["q1?"]}
    assert found.qrels == {"1_2": {"5": 1}, "3_1": {"6": 1}}


def test_rows_with_their_own_history_and_ids(tmp_path: Path) -> None:
    rows = [{"id": f"x{n}", "past": ["q1?", "a1"][: 2 * n], "q": f"q{n + 1}?", "gold": {"id": f"p{n}"}} for n in (0, 1)]
    found = read(dataset(tmp_path / "d", rows), question="q", history="past", query_id="id", gold="gold")
    assert queries(found) == {"x0": ["q1?"], "x1": ["q1?", "a1", "q2?"]}
    assert found.qrels == {"x0": {"p0": 1}, "x1": {"p1": 1}}


def test_malformed_rows_are_counted_with_their_number(tmp_path: Path) -> None:
    rows = [*TURNS, {**TURNS[2], "n": 3}, {**TURNS[0], "dialog": "c", "ask": " "}]
    with pytest.raises(DataError, match="row 4: is turn 3 of conversation 'b', but 1 exchanges precede it"):
        read(dataset(tmp_path / "d", rows), **TURN_COLUMNS)
    found = read(tmp_path / "d", max_bad_rows=2, **TURN_COLUMNS)
    assert len(queries(found)) == 3
    assert [reason for _, reason in found.quarantined][1] == "field 'ask' is empty"


def test_what_cannot_be_loaded_is_told_by_a_sentence(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "d", TURNS)
    with pytest.raises(DataError, match=r"has no column .text., which dataset\.columns\.question names; its columns are"):
        read(folder, question="text")
    with pytest.raises(DataError, match="split 'dev' cannot be read as a Hugging Face data set"):
        read(folder, split="dev", question="ask")
    with pytest.raises(DataError, match="is no folder on this machine"):
        read(tmp_path / "absent", question="ask")
    hub = DatasetConfig(revision="v1", columns=TurnColumns(question="q"))
    source = ConversationSource(reader="huggingface", conversations="hf://no-such-organisation/nothing", dataset=hub)
    with pytest.raises(DataError, match="hf://no-such-organisation/nothing: split 'train' cannot be read"):
        read_conversations(source, "mtrag", 0)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({}, "name either question"),
        ({"question": "q", "messages": "m"}, "name either question"),
        ({"messages": "m", "answer": "a"}, "answer is of a single turn"),
    ],
)
def test_a_mapping_says_what_a_row_is(columns: dict[str, str], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TurnColumns(**columns)


def test_the_hub_needs_a_revision_and_the_reader_its_section() -> None:
    settings = DatasetConfig(columns=TurnColumns(question="q"))
    with pytest.raises(ValidationError, match=r"needs dataset\.revision"):
        ConversationSource(reader="huggingface", conversations="hf://org/name", dataset=settings)
    with pytest.raises(ValidationError, match="go together"):
        ConversationSource(reader="huggingface", conversations="/folder")


def test_the_fingerprint_follows_content_and_columns(tmp_path: Path) -> None:
    first = read(dataset(tmp_path / "d", TURNS), question="ask").fingerprint
    assert read(dataset(tmp_path / "e", TURNS), question="ask").fingerprint == first
    assert read(tmp_path / "d", question="whole", answer="reply", max_bad_rows=1).fingerprint != first
    dataset(tmp_path / "e", TURNS[::-1])
    assert read(tmp_path / "e", question="ask").fingerprint != first
