"""Valid records of every conversation format, written from its published description, and how to read a file of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.config import ConversationSource
from raydistill.conversations.readers import read_conversations
from raydistill.conversations.records import ConversationSet


def topiocqa(conversation: int, turn: int, **changes: Any) -> dict[str, Any]:
    pieces = [piece for n in range(1, turn) for piece in (f"q{n}?", f"a{n}")]
    gold = [{"title": "Page [SEP] Section", "text": f"gold of {turn}", "passage_id": 100 + turn}]
    record = {"conv_id": conversation, "turn_id": turn, "question": " [SEP] ".join([*pieces, f"q{turn}?"])}
    return {**record, "answers": [f"a{turn}"], "positive_ctxs": gold, "hard_negative_ctxs": [], **changes}


def topiocqa_original(conversation: int, turn: int, **changes: Any) -> dict[str, Any]:
    context = [piece for n in range(1, turn) for piece in (f"q{n}?", f"a{n}")]
    record = {"Conversation_no": conversation, "Turn_no": turn, "Question": f"q{turn}?", "Answer": f"a{turn}"}
    gold = {"id": f"wiki:{100 + turn}", "title": "Page [SEP] Section", "text": f"gold of {turn}"}
    rest = {"Topic": "Page", "Topic_section": "Section", "Rationale": "x", "is_nq": False, "Additional_answers": []}
    return {**record, "Context": context, "Gold_passage": gold, **rest, **changes}


def qrecc(conversation: int, turn: int, **changes: Any) -> dict[str, Any]:
    context = [piece for n in range(1, turn) for piece in (f"q{n}?", f"a{n}")]
    record = {"Conversation_no": conversation, "Turn_no": turn, "Context": context, "Question": f"q{turn}?"}
    truth = {"Rewrite": f"whole q{turn}?", "Answer": f"a{turn}", "Answer_URL": "https://example.org/a"}
    return {**record, **truth, "Conversation_source": "trec" if conversation < 80 else "quac", **changes}


def qrecc_scai(conversation: int, turn: int, **changes: Any) -> dict[str, Any]:
    record = qrecc(conversation, turn)
    for field in ("Rewrite", "Answer", "Answer_URL"):
        del record[field]
    gold = [f"http://web.archive.org/web/2015/http://example.org:80/a b_/p{turn}"] if turn % 2 else []
    truth = {"Truth_rewrite": f"whole q{turn}?", "Truth_answer": f"a{turn}", "Truth_passages": gold}
    return {**record, **truth, **changes}


def mtrag_task(conversation: str, turn: int, **changes: Any) -> dict[str, Any]:
    said = []
    for n in range(1, turn + 1):
        said += [{"speaker": "user", "text": f"q{n}?", "metadata": {}}, {"speaker": "agent", "text": f"a{n}"}]
    record = {"conversation_id": conversation, "task_id": f"{conversation}<::>{turn}", "turn": turn, "task_type": "rag"}
    rest = {"Collection": "mt-rag-clapnq", "contexts": [{"document_id": "p1", "text": "x"}], "Standalone Type": float("nan")}
    targets = [{"speaker": "agent", "text": f"a{turn}"}]
    return {**record, **rest, "input": said[:-1], "targets": targets, **changes}


def mtrag(name: int, turns: int, **changes: Any) -> dict[str, Any]:
    said = [{"turn_id": n, "query_id": f"{name}<::>{n}", "user": f"q{n}?", "agent": f"a{n}"} for n in range(1, turns + 1)]
    return {"conversation_id": f"c{name}", "split": "train", "turns": said, **changes}


def cast(number: int, turns: int, **changes: Any) -> dict[str, Any]:
    said = [{"number": n, "raw_utterance": f"q{n}?", "passage": f"a{n}"} for n in range(1, turns + 1)]
    return {"number": number, "turn": said, **changes}


def ikat(number: int, turns: int, **changes: Any) -> dict[str, Any]:
    said = [{"turn_id": n, "utterance": f"q{n}?", "response": f"a{n}"} for n in range(1, turns + 1)]
    return {"number": f"{number}-1", "title": "t", "ptkb": {"1": "I am tall."}, "turns": said, **changes}


def turn_ids(conversation: str, turn: str) -> Callable[[Any], list[str]]:
    return lambda record: [f"{record[conversation]}_{int(record[turn])}"]


def topic_ids(turns: str, turn: str) -> Callable[[Any], list[str]]:
    return lambda record: [f"{record['number']}_{each[turn]}" for each in record[turns]]


def task_ids(record: Any) -> list[str]:
    task_id = str(record["task_id"])
    before, _, turn = task_id.rpartition("::")
    return [f"{before.removesuffix('<')}<::>{turn}" if turn.isdecimal() and before else task_id]


@dataclass(frozen=True)
class Format:
    """A format that holds records: its reader, whether its file is one JSON list, and records of two conversations."""

    reader: str
    as_list: bool
    record: Callable[[int, int], dict[str, Any]]
    a_record_is_a_turn: bool
    ids: Callable[[Any], list[str]]
    """Query ids of a record that was read."""

    def valid(self) -> list[dict[str, Any]]:
        """Return five records that can be read."""
        if self.a_record_is_a_turn:
            return [self.record(*each) for each in ((7, 1), (7, 2), (7, 3), (90, 1), (90, 2))]
        return [self.record(number, turns) for number, turns in enumerate((1, 2, 3, 1, 2), start=1)]

    def text(self, records: list[Any]) -> str:
        """Return the content of a file of the records."""
        return json.dumps(records, indent=1) if self.as_list else "".join(json.dumps(each) + "\n" for each in records)


FORMATS: dict[str, Format] = {
    "topiocqa retriever": Format("topiocqa", True, topiocqa, True, turn_ids("conv_id", "turn_id")),
    "topiocqa original": Format("topiocqa", False, topiocqa_original, True, turn_ids("Conversation_no", "Turn_no")),
    "qrecc original": Format("qrecc", True, qrecc, True, turn_ids("Conversation_no", "Turn_no")),
    "qrecc scai": Format("qrecc", True, qrecc_scai, True, turn_ids("Conversation_no", "Turn_no")),
    "mtrag tasks": Format("mtrag-tasks", False, lambda name, turn: mtrag_task(f"c{name}", turn), True, task_ids),
    "mtrag": Format("mtrag", False, mtrag, False, lambda record: [turn["query_id"] for turn in record["turns"]]),
    "cast": Format("cast", True, cast, False, topic_ids("turn", "number")),
    "ikat": Format("ikat", True, ikat, False, topic_ids("turns", "turn_id")),
}


def read_file(path: Path, reader: str, max_bad_rows: int = 0, **source: Any) -> ConversationSet:
    """Read a conversation file."""
    settings = ConversationSource(conversations=str(path), reader=reader, **source)
    return read_conversations(settings, "mtrag", max_bad_rows)


def read_records(folder: Path, name: str, records: list[Any], max_bad_rows: int = 0, **source: Any) -> ConversationSet:
    """Write records in a format and read them."""
    path = folder / "conversations.json"
    path.write_text(FORMATS[name].text(records))
    return read_file(path, FORMATS[name].reader, max_bad_rows, **source)
