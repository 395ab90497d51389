"""Reader of MTRAG conversations: JSON lines {conversation_id, split, turns: [{turn_id, query_id, user, agent}]}.

The format is that of the MTRAG benchmark (Katsis et al., arXiv 2501.03468) with one conversation a line; its task files
have a reader of their own.

Protocol: judgements come from a BEIR qrels file, grade 1; turns that cannot be answered have none and are left out of
measures. Query ids are as in the qrels ("{conversation}<::>{turn}", turns from 1), and passage ids are kept as they are.
"""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Any

from raydistill.conversations.records import Conversation, Turn
from raydistill.conversations.rows import (
    BadRow,
    Quarantine,
    RowError,
    identifier,
    json_object,
    numbered_lines,
    optional_text,
    required_text,
    turn_number,
)
from raydistill.conversations.sources import ConversationFile
from raydistill.storage.files import open_input

_QUERY_ID = re.compile(r'"query_id"\s*:\s*"((?:[^"\\]|\\.)*)"')


def read_mtrag(uri: str, quarantine: Quarantine) -> ConversationFile:
    """Read a file of MTRAG conversations; a line that is malformed or repeats an id goes to the quarantine whole."""
    conversations: list[Conversation] = []
    splits: dict[str, str] = {}
    query_ids: set[str] = set()
    left_out: set[str] = set()
    with open_input(uri) as stream:
        for line in numbered_lines(stream, uri):
            if isinstance(line, BadRow):
                quarantine.add(line)
                continue
            try:
                record = json_object(line.text)
                conversation = _conversation(record)
                split = optional_text(record, "split")
                _require_new(conversation, splits.keys(), query_ids)
            except RowError as error:
                quarantine.add(BadRow(line.place, str(error)))
                left_out.update(_QUERY_ID.findall(line.text))
                continue
            conversations.append(conversation)
            splits[conversation.conversation_id] = split
            query_ids.update(turn.query_id for turn in conversation.turns)
    return ConversationFile(uri, tuple(conversations), splits, left_out=frozenset(left_out - query_ids))


def _conversation(record: dict[str, Any]) -> Conversation:
    conversation_id = identifier(record, "conversation_id")
    turns = record.get("turns")
    if not isinstance(turns, list) or not turns:
        raise RowError(f"conversation {conversation_id!r} has no turns (field 'turns' must be a list with at least one)")
    read: list[Turn] = []
    for position, turn in enumerate(turns, start=1):
        try:
            read.append(_turn(turn, position))
            if len(read) > 1 and read[-1].depth <= read[-2].depth:
                raise RowError(f"turn_id {read[-1].depth} does not come after {read[-2].depth}")
        except RowError as error:
            raise RowError(f"conversation {conversation_id!r}, turn {position}: {error}") from None
    return Conversation(conversation_id, tuple(read))


def _turn(turn: Any, position: int) -> Turn:
    if not isinstance(turn, dict):
        raise RowError("is not a JSON object")
    depth = turn_number(turn, "turn_id") if "turn_id" in turn else position
    return Turn(identifier(turn, "query_id"), depth, required_text(turn, "user"), optional_text(turn, "agent"))


def _require_new(conversation: Conversation, conversation_ids: Set[str], query_ids: Set[str]) -> None:
    if conversation.conversation_id in conversation_ids:
        raise RowError(f"conversation id {conversation.conversation_id!r} is used by an earlier line")
    own: set[str] = set()
    for turn in conversation.turns:
        if turn.query_id in query_ids or turn.query_id in own:
            raise RowError(f"query id {turn.query_id!r} is used twice")
        own.add(turn.query_id)
