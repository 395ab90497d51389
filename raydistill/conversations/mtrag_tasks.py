"""Reader of MTRAG task files, of MTRAG itself and of MTRAG-UN: JSON lines, one task a line, its conversation inside.

Format (Katsis et al., arXiv 2501.03468; Rosenthal et al., arXiv 2602.23184; generation_tasks/*.jsonl): {conversation_id,
task_id, turn, Collection, input: [{speaker: user or agent, text}, ...], targets: [{speaker, text}], contexts, ...}; `input`
is the conversation up to the question. MTRAG-UN has one task a conversation (666), MTRAG one a turn (842).

Protocol: only the last question of a task is a query; what comes before is its history. A query id is the task id with
"<::>" before the turn, as in the qrels, which some task files write "::". Judgements come from the BEIR qrels of the
retrieval tasks, grade 1; unanswerable questions have none and are left out of measures. `contexts` are no judgements: in
some files they are what a system retrieved. `split` takes a task's Collection, since qrels are by collection.
"""

from __future__ import annotations

from typing import Any

from raydistill.conversations.records import Conversation, Turn
from raydistill.conversations.rows import (
    BadRow,
    Quarantine,
    RowError,
    identifier,
    json_records,
    optional_text,
    required_text,
    turn_number,
)
from raydistill.conversations.sources import ConversationFile

_USER, _AGENT = "user", "agent"


def read_mtrag_tasks(uri: str, quarantine: Quarantine) -> ConversationFile:
    """Read a file of MTRAG tasks; a line that is malformed or repeats a task goes to the quarantine."""
    conversations: dict[str, Conversation] = {}
    splits: dict[str, str] = {}
    left_out: set[str] = set()
    renumbered = 0
    for row in json_records(uri, "MTRAG task files"):
        if isinstance(row, BadRow):
            quarantine.add(row)
            continue
        place, record = row
        try:
            conversation = _conversation(record)
            query_id, split = conversation.turns[-1].query_id, _collection(record)
            if query_id in conversations:
                raise RowError(f"task {query_id!r} is there twice")
            renumbered += "turn" in record and turn_number(record, "turn") != len(conversation.turns)
        except RowError as error:
            quarantine.add(BadRow(place, str(error)))
            left_out.update(_readable_ids(record))
            continue
        conversations[query_id] = conversation
        splits[conversation.conversation_id] = split
    note = f"{renumbered} tasks give another turn than the number of their user utterances, which counts"
    notes = (note,) if renumbered else ()
    left_out -= conversations.keys()
    return ConversationFile(uri, tuple(conversations.values()), splits, left_out=frozenset(left_out), notes=notes)


def _conversation(record: Any) -> Conversation:
    if not isinstance(record, dict):
        raise RowError("is not a JSON object")
    conversation_id, query_id = identifier(record, "conversation_id"), _query_id(identifier(record, "task_id"))
    said = record.get("input")
    if not isinstance(said, list) or not all(isinstance(utterance, dict) for utterance in said):
        raise RowError(f"task {query_id!r}: field 'input' must be a list of objects")
    turns: list[Turn] = []
    for number, utterance in enumerate(said, start=1):
        text = required_text(utterance, "text").strip()
        speaker = optional_text(utterance, "speaker")
        if speaker == _USER:
            depth = len(turns) + 1
            turns.append(Turn(f"{conversation_id}<::>{depth}", depth, text))
        elif speaker == _AGENT and turns:
            spoken = f"{turns[-1].answer} {text}".strip()
            turns[-1] = Turn(turns[-1].query_id, turns[-1].depth, turns[-1].question, spoken)
        else:
            raise RowError(
                f"task {query_id!r}: utterance {number} is by {speaker!r}; it must be {_USER} or {_AGENT}, the first {_USER}"
            )
    if not turns or turns[-1].answer:
        raise RowError(f"task {query_id!r} does not end with a question of the user")
    turns[-1] = Turn(query_id, len(turns), turns[-1].question, _target(record))
    return Conversation(conversation_id, tuple(turns), asked_before=len(turns) - 1)


def _query_id(task_id: str) -> str:
    before, separator, turn = task_id.rpartition("::")
    return f"{before}<::>{turn}" if separator and turn.isdecimal() and not before.endswith("<") else task_id


def _target(record: dict[str, Any]) -> str:
    targets = record.get("targets")
    if isinstance(targets, list) and targets and isinstance(targets[0], dict):
        return optional_text(targets[0], "text").strip()
    return ""


def _collection(record: dict[str, Any]) -> str:
    return optional_text(record, "Collection" if "Collection" in record else "collection")


def _readable_ids(record: Any) -> set[str]:
    task_id = record.get("task_id") if isinstance(record, dict) else None
    return {_query_id(task_id)} if isinstance(task_id, str) else set()
