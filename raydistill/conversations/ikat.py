"""Reader of iKAT topics: one JSON list of conversations, each turn with its human rewrite and its answer.

Format (TREC iKAT; Aliannejadi et al., arXiv 2401.01330): records {number, title, ptkb, turns: [{turn_id, utterance,
resolved_utterance, response, ...}]}; the file of 2025 calls them `responses` and `user_utterance`. `ptkb` is what is known
of the user: a list of sentences, or an object that numbers them; it becomes the conversation's facts. With `persona: true`
in the source they open every conversation too, as what the user said first; without it a rewrite that draws on them still
holds what is needed.

Protocol: judgements are those of NIST alone; provenance names passages of a licensed collection and gives none. A grade
above 0 is relevant, turns without a judgement are left out of measures. A query id is "{number}_{turn_id}", as in the
qrels; different years use the same numbers.
"""

from __future__ import annotations

from typing import Any

from raydistill.conversations.records import Conversation, Turn
from raydistill.conversations.rows import BadRow, Quarantine, RowError, identifier, json_list, spoken_text, turn_number
from raydistill.conversations.sources import ConversationFile


def read_ikat(uri: str, quarantine: Quarantine) -> ConversationFile:
    """Read an iKAT topic file; a malformed conversation, or one whose number came before, goes to the quarantine whole."""
    conversations: dict[str, Conversation] = {}
    left_out: set[str] = set()
    for position, record in enumerate(json_list(uri, "iKAT topic files"), start=1):
        try:
            conversation = _conversation(record)
            if conversation.conversation_id in conversations:
                raise RowError(f"conversation {conversation.conversation_id!r} is there twice")
            conversations[conversation.conversation_id] = conversation
        except RowError as error:
            quarantine.add(BadRow(f"{uri}: record {position}", str(error)))
            left_out.update(_readable_ids(record))
    known = {turn.query_id for conversation in conversations.values() for turn in conversation.turns}
    left_out -= known
    return ConversationFile(uri, tuple(conversations.values()), left_out=frozenset(left_out))


def _conversation(record: Any) -> Conversation:
    if not isinstance(record, dict):
        raise RowError("is not a JSON object")
    number = identifier(record, "number")
    turns = _turns_of(record)
    if not isinstance(turns, list) or not turns:
        raise RowError(f"conversation {number!r} has no turns (field 'turns' must be a list with at least one)")
    read: list[Turn] = []
    for position, turn in enumerate(turns, start=1):
        try:
            read.append(_turn(number, turn))
            if len(read) > 1 and read[-1].depth <= read[-2].depth:
                raise RowError(f"turn_id {read[-1].depth} does not come after {read[-2].depth}")
        except RowError as error:
            raise RowError(f"conversation {number!r}, turn {position}: {error}") from None
    return Conversation(number, tuple(read), facts=_facts(number, record.get("ptkb")))


def _facts(number: str, ptkb: Any) -> tuple[str, ...]:
    sentences = list(ptkb.values()) if isinstance(ptkb, dict) else ptkb or []
    if not isinstance(sentences, list) or not all(isinstance(each, str) for each in sentences):
        raise RowError(f"conversation {number!r}: ptkb must hold sentences, as a list or by number")
    spoken = (spoken_text({"ptkb": sentence}, "ptkb") for sentence in sentences)
    return tuple(sentence for sentence in spoken if sentence)


def _turns_of(record: dict[str, Any]) -> Any:
    return record.get("turns", record.get("responses"))


def _turn(number: str, turn: Any) -> Turn:
    if not isinstance(turn, dict):
        raise RowError("is not a JSON object")
    depth = turn_number(turn, "turn_id")
    question = spoken_text(turn, "utterance" if "utterance" in turn else "user_utterance")
    if not question:
        raise RowError("has no utterance")
    return Turn(f"{number}_{depth}", depth, question, spoken_text(turn, "response"), spoken_text(turn, "resolved_utterance"))


def _readable_ids(record: Any) -> set[str]:
    """Return the query ids of a malformed record, as far as they can be read."""
    if not isinstance(record, dict):
        return set()
    turns = _turns_of(record)
    named = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    return {f"{record.get('number')}_{turn.get('turn_id')}" for turn in named}
