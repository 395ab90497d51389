"""How a conversation becomes text: the student's input, and the plain forms of undistilled baselines. No tokenizer here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raydistill.config import TextConfig
from raydistill.conversations.records import ConversationalQuery

History = Sequence[tuple[str, str]]


def history_pairs(query: ConversationalQuery) -> list[tuple[str, str]]:
    """Return what was said before a query as (question, answer) pairs, oldest first."""
    return [(turn.question, turn.answer) for turn in query.history]


def student_text(question: str, history: History, text: TextConfig, separator: str) -> str:
    """Return the student's input `q_n SEP a_{n-1} SEP q_{n-1} SEP ... SEP q_1`, newest first.

    Truncation at `text.max_tokens` (the tokenizer's work) so drops the oldest turns, and dropping the oldest turns of
    the history only shortens the end of the text. Runs of white space become one space; an occurrence of the separator
    inside an utterance is removed, so no utterance can pass for two turns.

    Args:
        question: the last user utterance; never cut here.
        history: (question, answer) pairs, oldest first; an answer "" (unknown) is left out.
        text: budgets in white-space separated words; `answer_words` 0 leaves every answer out.
        separator: the tokenizer's separator token, for example "[SEP]"; "" joins with spaces.
    """
    pieces = [_words(question, separator)]
    for asked, answered in reversed(history):
        pieces.append(_words(answered, separator)[: text.answer_words])
        pieces.append(_words(asked, separator)[: text.utterance_words])
    joint = f" {separator} " if separator else " "
    return joint.join(" ".join(words) for words in pieces if words)


def full_conversation_text(question: str, history: History) -> str:
    """Return everything that was said, newest first, one utterance a line: the undistilled full-conversation query."""
    return "\n".join(_newest_first(question, history))


def user_turns_text(question: str, history: History) -> str:
    """Return all user utterances, newest first, one a line."""
    return "\n".join(_newest_first(question, [(asked, "") for asked, _ in history]))


def _newest_first(question: str, history: History) -> Iterator[str]:
    yield " ".join(question.split())
    for asked, answered in reversed(history):
        for utterance in (answered, asked):
            if utterance.strip():
                yield " ".join(utterance.split())


def _words(utterance: str, separator: str) -> list[str]:
    return (utterance.replace(separator, " ") if separator else utterance).split()
