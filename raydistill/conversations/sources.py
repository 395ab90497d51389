"""What a conversation format module hands to `readers`: the whole content of one file before judgements and split filter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raydistill.conversations.qrels import Qrels
from raydistill.conversations.records import Conversation


@dataclass(frozen=True, slots=True)
class ConversationFile:
    """One conversation file.

    Attributes:
        uri: where it was read.
        conversations: in file order, malformed ones left out.
        splits: conversation id -> its own split field, for conversations that have one.
        qrels: gold passages that the file itself holds.
        left_out: ids of queries in malformed conversations, as far as they can be read.
        gold_texts: passage id -> text of gold passages, where the file holds that.
        notes: sentences about what is unusual but usable in the file.
    """

    uri: str
    conversations: tuple[Conversation, ...]
    splits: Mapping[str, str] = field(default_factory=dict)
    qrels: Qrels = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    gold_texts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
