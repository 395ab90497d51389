"""The records every reader produces: passages, turns, conversations, judgements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrievable text. `passage_id` is the collection's own id, a string that is never interpreted."""

    passage_id: str
    text: str
    title: str = ""

    @property
    def full_text(self) -> str:
        """Title and text, the title not repeated when the text already begins with it."""
        if not self.title or self.text.startswith(self.title):
            return self.text
        return f"{self.title}\n{self.text}"


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange. `depth` is 1 for the first question; `answer` is what the system replied, "" when unknown; `rewrite` is
    the question made self-contained, where the conversation file holds that, and never part of a query's history; `topic` is
    what the exchange is about, where the file says so: nothing reads it but tables of turns that change it."""

    query_id: str
    depth: int
    question: str
    answer: str = ""
    rewrite: str = ""
    topic: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order of time, at least one.

    Attributes:
        conversation_id: the paths of one tree of turns are conversations with the same id.
        source: name of the source it comes from, "" when that has none.
        asked_before: leading turns that an earlier path of the same tree asks; here they are history only.
        facts: what the user has told about themselves (iKAT's personal knowledge base), in file order.
    """

    conversation_id: str
    turns: tuple[Turn, ...]
    source: str = ""
    asked_before: int = 0
    facts: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[Turn, ...]:
        """The turns that are queries."""
        return self.turns[self.asked_before :]


@dataclass(frozen=True, slots=True)
class ConversationalQuery:
    """A turn to be answered, with what was said before it (oldest first; the history holds no later turn).

    `source`, `facts`, `answer`, `rewrite` and `topic` are those of its conversation and its turn. The answer is what came
    after the question: nobody who is to be measured on the turn may see it.
    """

    query_id: str
    conversation_id: str
    depth: int
    question: str
    history: tuple[Turn, ...]
    source: str = ""
    rewrite: str = ""
    answer: str = ""
    facts: tuple[str, ...] = ()
    topic: str = ""


@dataclass(frozen=True, slots=True)
class ConversationSet:
    """Conversations with judgements.

    Attributes:
        conversations: in file order.
        qrels: query id -> passage id -> grade (int; > 0 is relevant unless the reader's protocol says otherwise).
        fingerprint: SHA-256 over the source files' bytes and the reader's settings, and over what was held out.
        quarantined: (place, reason) of every row left out, within the configured limit.
        notes: sentences about what is unusual but usable in the files.
        gold_texts: passage id -> text of gold passages, where the conversation files hold that.
    """

    conversations: tuple[Conversation, ...]
    qrels: Mapping[str, Mapping[str, int]]
    fingerprint: str
    quarantined: tuple[tuple[str, str], ...] = field(default=())
    notes: tuple[str, ...] = ()
    gold_texts: Mapping[str, str] = field(default_factory=dict)

    def queries(self) -> Iterator[ConversationalQuery]:
        """Yield every turn of every conversation as a query with its history, each turn of a tree once."""
        for conversation in self.conversations:
            for position, turn in enumerate(conversation.asked, start=conversation.asked_before):
                yield ConversationalQuery(
                    query_id=turn.query_id,
                    conversation_id=conversation.conversation_id,
                    depth=turn.depth,
                    question=turn.question,
                    history=conversation.turns[:position],
                    source=conversation.source,
                    rewrite=turn.rewrite,
                    answer=turn.answer,
                    facts=conversation.facts,
                    topic=turn.topic,
                )
