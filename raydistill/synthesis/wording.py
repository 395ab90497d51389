"""What a language model is asked when it writes a conversation about passages, and what becomes of its answers. Pure.

Three requests a turn, each answered on a single line, so that small models manage: a self-contained question (or keyword
query, or statement) that the passage answers; that question as people say it in the middle of a conversation; and the
answer. The first is the rewrite of the second: what a student is taught.

A released wording never changes: `VERSION` is part of every cache key. A better one is a new version.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from raydistill.config.synthesis import TurnKind
from raydistill.teachers.engine import Failure
from raydistill.teachers.parsing import ParsedRewrite, is_refusal, parse_rewrite, without_thinking

VERSION = "synthesis-v1"

_ASKED = {
    "question": "one question that the passage answers",
    "keywords": "one search query of three to eight keywords, not a sentence, for which the passage is the best result",
    "claim": "one short statement that somebody would like to have checked and that the passage confirms or refutes",
}
_ALONE = {"question": "the question", "keywords": "the keywords", "claim": "the statement"}
_ASK = (
    "Below is a passage. Write {asked}. It comes from a person who has never seen the passage, so name the people, places "
    "and things it is about, and do not speak of a passage or a text. {others}Reply with {alone} alone, on a single line."
)
_OTHERS = "It is about something else than these: {others}. "
_FOLLOW = (
    "Below is a conversation between a user and a system, and what the user wants to know next. Write the user's next "
    "message as people do in the middle of a conversation: short, with pronouns for what was just named, and without what "
    "is clear from before. It must mean the same. Reply with the message alone, on a single line."
)
_ANSWER = (
    "Below are a passage and a question. Answer the question from the passage, in one or two sentences, as a system would "
    "in a conversation. Do not speak of a passage or a text. Reply with the answer alone."
)
_SPEAKS_OF_TEXT = re.compile(
    r"\b(?:the|this|given|above|provided)\s+(?:passage|text|document|article|excerpt)\b", re.IGNORECASE
)
_FEWEST_WORDS = 10
"""Words of a passage that a prompt shows at least, whatever its budget."""

CountTokens = Callable[[str], int]


def ask_prompt(kind: TurnKind, passage: str, others: Sequence[str], max_tokens: int, count_tokens: CountTokens) -> str:
    """Return the request for a self-contained question of a kind about a passage, unlike those asked before."""
    excluded = _OTHERS.format(others="; ".join(f'"{one}"' for one in others)) if others else ""
    task = _ASK.format(asked=_ASKED[kind], others=excluded, alone=_ALONE[kind])
    return _fitted(lambda shown: f"{task}\n\nPassage: {shown}\n", passage, max_tokens, count_tokens)


def follow_prompt(wanted: str, history: Sequence[tuple[str, str]], max_tokens: int, count_tokens: CountTokens) -> str:
    """Return the request for a question as it is said after (question, answer) pairs; the oldest give way to the budget."""
    kept = list(history)
    while True:
        said = "".join(f"user: {asked}\nsystem: {answer}\n" for asked, answer in kept)
        prompt = f"{_FOLLOW}\n\n{said}The user wants to know: {wanted}\n"
        if len(kept) <= 1 or count_tokens(prompt) <= max_tokens:
            return prompt
        del kept[0]


def answer_prompt(question: str, passage: str, max_tokens: int, count_tokens: CountTokens) -> str:
    """Return the request for an answer from a passage."""
    return _fitted(
        lambda shown: f"{_ANSWER}\n\nPassage: {shown}\n\nQuestion: {question}\n", passage, max_tokens, count_tokens
    )


def parse_question(raw: str, finish_reason: str) -> ParsedRewrite:
    """Return the self-contained question that an answer holds; one that speaks of the passage is CHATTY.

    Otherwise as `parsing.parse_rewrite`.
    """
    found = parse_rewrite(raw, "", finish_reason)
    if found.failure is None and _SPEAKS_OF_TEXT.search(found.text):
        return ParsedRewrite("", Failure.CHATTY)
    return found


def parse_message(raw: str, wanted: str, finish_reason: str) -> ParsedRewrite:
    """Return the user's message that an answer holds; as `parsing.parse_rewrite`, but one or two words are enough."""
    found = parse_rewrite(raw, wanted, finish_reason)
    if found.failure is Failure.TOO_SHORT:
        first = next((line.strip() for line in without_thinking(raw).splitlines() if line.strip()), "")
        return ParsedRewrite(first, None) if first else found
    return found


def parse_answer(raw: str, finish_reason: str) -> ParsedRewrite:
    """Return what an answer says, on one line: EMPTY, REFUSAL, or TRUNCATED where generation ended by length."""
    text = " ".join(without_thinking(raw).split())
    if not text:
        return ParsedRewrite("", Failure.EMPTY)
    if finish_reason == "refusal" or is_refusal(text):
        return ParsedRewrite("", Failure.REFUSAL)
    if finish_reason == "length":
        return ParsedRewrite("", Failure.TRUNCATED)
    return ParsedRewrite(text, None)


def _fitted(build: Callable[[str], str], passage: str, max_tokens: int, count_tokens: CountTokens) -> str:
    """Return the prompt with as much of the beginning of a passage as the budget allows."""
    words = passage.split()
    prompt = build(" ".join(words))
    while len(words) > _FEWEST_WORDS and (tokens := count_tokens(prompt)) > max_tokens:
        # Words and tokens grow about alike; one word less at least, so that it ends.
        kept = min(len(words) - 1, int(len(words) * max_tokens / tokens))
        words = words[: max(_FEWEST_WORDS, kept)]
        prompt = build(" ".join(words))
    return prompt
