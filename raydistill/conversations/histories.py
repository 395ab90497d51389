"""Conversations put together from records that each tell one turn and all that was said before it (TopiOCQA, QReCC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from raydistill.conversations.records import Conversation, Turn
from raydistill.conversations.rows import RowError


@dataclass(slots=True)
class _Draft:
    """What is known of a conversation while its records are read; keys are depths, from 1."""

    own: dict[int, Turn] = field(default_factory=dict)
    past: dict[int, tuple[str, str]] = field(default_factory=dict)


@dataclass(slots=True)
class Histories:
    """The conversations of a file that is read record by record.

    A turn that later histories show but that has no record of its own is part of its conversation, without a judgement;
    those before the first turn with a record are history only.

    Attributes:
        worded_otherwise: turns whose question a later record's history gives in other words; its own record counts.
    """

    worded_otherwise: int = 0
    _drafts: dict[str, _Draft] = field(default_factory=dict)
    _query_ids: set[str] = field(default_factory=set)

    def add(self, conversation_id: str, turn: Turn, past: Sequence[tuple[str, str]]) -> None:
        """Add what a record tells: its turn, and the (question, answer) pairs before it. RowError: a repetition."""
        draft = self._drafts.get(conversation_id) or _Draft()
        if turn.query_id in self._query_ids:
            raise RowError(f"query id {turn.query_id!r} is used twice")
        if turn.depth in draft.own:
            raise RowError(f"turn {turn.depth} of conversation {conversation_id!r} is there twice")
        self._query_ids.add(turn.query_id)
        self._drafts[conversation_id] = draft
        draft.own[turn.depth] = turn
        draft.past.update(enumerate(past, start=1))

    def conversations(self) -> tuple[Conversation, ...]:
        """Return the conversations in the order in which their first records came."""
        self.worded_otherwise = 0
        return tuple(self._conversation(*item) for item in self._drafts.items())

    def _conversation(self, conversation_id: str, draft: _Draft) -> Conversation:
        turns = []
        for depth in sorted({*draft.own, *draft.past}):
            own, (asked, answered) = draft.own.get(depth), draft.past.get(depth, ("", ""))
            if own is None:
                turns.append(Turn(self._free_id(f"{conversation_id}_{depth}"), depth, asked, answered))
                continue
            self.worded_otherwise += bool(asked) and asked.split() != own.question.split()
            # A later history tells what was really said; the record's own answer stands in for the last turn.
            answer = answered if depth in draft.past else own.answer
            turns.append(Turn(own.query_id, depth, own.question, answer, own.rewrite, own.topic))
        return Conversation(conversation_id, tuple(turns), asked_before=min(draft.own) - 1)

    def _free_id(self, query_id: str) -> str:
        return f"{query_id}_unasked" if query_id in self._query_ids else query_id


def exchanges(said: Sequence[str]) -> list[tuple[str, str]]:
    """Return alternating utterances, oldest first, as (question, answer) pairs. Raises RowError for an odd number or an
    empty question."""
    if len(said) % 2:
        raise RowError(f"has {len(said)} utterances before its question; they must be pairs of a question and an answer")
    pairs = list(zip(said[0::2], said[1::2], strict=True))
    empty = next((number for number, (asked, _) in enumerate(pairs, start=1) if not asked.strip()), None)
    if empty:
        raise RowError(f"question {empty} of its history is empty")
    return pairs


def worded_otherwise_note(count: int) -> list[str]:
    """Return the sentence about turns whose history differs from their record, if there are any."""
    if not count:
        return []
    return [f"{count} turns are worded otherwise in the histories of later records; their own records count"]
