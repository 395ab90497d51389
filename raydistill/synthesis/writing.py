"""Conversations written turn by turn, many side by side: a batch of prompts for each request of each turn. No Ray.

A conversation ends before the first turn that cannot be written or whose passage is not found again: what would come after
builds on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from raydistill.conversations.records import Passage
from raydistill.encoders.interface import SparseEncoder
from raydistill.index.search import Searcher
from raydistill.synthesis.planning import Plan, PlannedTurn
from raydistill.synthesis.wording import (
    VERSION,
    answer_prompt,
    ask_prompt,
    follow_prompt,
    parse_answer,
    parse_message,
    parse_question,
)
from raydistill.teachers.cache import GenerationCache, cached_generate
from raydistill.teachers.engine import Engine, Generation, Sampling
from raydistill.teachers.parsing import ParsedRewrite
from raydistill.teachers.rewriting import PromptTokenizer


@dataclass(frozen=True, slots=True)
class WrittenTurn:
    """A turn that was written.

    Attributes:
        passage_id: what it is about. kind: question, keywords or claim.
        standalone: the self-contained question. message: what the user says.
        answer: what the system replies, "" of the last turn.
        rank: of the passage for the self-contained question, from 1; 0 where nobody looked.
    """

    passage_id: str
    kind: str
    standalone: str
    message: str
    answer: str
    rank: int


class Finder(Protocol):
    """Says whether a passage is found again."""

    def ranks(self, queries: Sequence[str], passage_ids: Sequence[str]) -> list[int | None]:
        """Return the rank of each query's passage, from 1; None where it is not found."""


class IndexFinder:
    """Looks in an index, as far as `depth`."""

    def __init__(self, searcher: Searcher, encoder: SparseEncoder, depth: int) -> None:
        self._searcher, self._encoder, self._depth = searcher, encoder, depth

    def ranks(self, queries: Sequence[str], passage_ids: Sequence[str]) -> list[int | None]:
        """See `Finder`."""
        if not queries:
            return []
        found = self._searcher.search(self._encoder.encode_queries(list(queries)), self._depth).passages
        wanted = self._searcher.find(list(passage_ids))
        hits = (found == wanted[:, None]) & (wanted[:, None] >= 0)
        return [int(row.argmax()) + 1 if row.any() else None for row in np.asarray(hits)]


@dataclass
class _Draft:
    """A conversation in the making: the turns it has, and what is known so far of the next one."""

    plan: Plan
    passages: Mapping[str, Passage]
    turns: list[WrittenTurn] = field(default_factory=list)
    standalone: str = ""
    message: str = ""
    answer: str = ""
    rank: int | None = 0
    is_over: bool = False

    @property
    def planned(self) -> PlannedTurn:
        return self.plan.turns[len(self.turns)]

    @property
    def passage(self) -> Passage:
        return self.passages[self.plan.passages[self.planned.topic]]

    @property
    def stays(self) -> bool:
        """Whether the next turn is about what the one before was about."""
        return bool(self.turns) and self.planned.topic == self.plan.turns[len(self.turns) - 1].topic

    @property
    def is_last(self) -> bool:
        return len(self.turns) + 1 == len(self.plan.turns)

    @property
    def history(self) -> list[tuple[str, str]]:
        return [(turn.message, turn.answer) for turn in self.turns]

    @property
    def asked(self) -> list[str]:
        """What was asked about the next turn's passage before."""
        return [turn.standalone for turn in self.turns if turn.passage_id == self.passage.passage_id]

    def add_turn(self) -> None:
        turn = self.passage.passage_id, self.planned.kind, self.standalone, self.message, self.answer, self.rank or 0
        # Nothing can follow what was not answered.
        self.is_over = self.is_last or not self.answer
        self.turns.append(WrittenTurn(*turn))
        self.answer = ""


class ConversationWriter:
    """Writes conversations with one model.

    Args:
        engine, tokenizer, max_tokens: the model, and the budget of a prompt.
        cache: what it wrote before.
        finder: looks for a turn's passage; None keeps every turn.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PromptTokenizer,
        max_tokens: int,
        cache: GenerationCache,
        sampling: Sampling,
        finder: Finder | None,
    ) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self._budget = max_tokens, tokenizer.count_tokens
        self._cache, self._sampling, self._finder = cache, sampling, finder
        self.counters: Counter[str] = Counter()
        """Of everything written so far: prompts, cached, failed.{request}.{reason}, not_found, as_asked (turns that are said
        as the self-contained question is), turns, conversations."""

    def write(self, plans: Sequence[Plan], passages: Mapping[str, Passage]) -> list[list[WrittenTurn]]:
        """Return the turns of every plan's conversation, in order; none where the first one failed.

        Raises TeacherError when the engine cannot go on.
        """
        drafts = [_Draft(plan, passages) for plan in plans]
        while going := [draft for draft in drafts if not draft.is_over]:
            self._write_turn(going)
        self.counters["conversations"] += sum(bool(draft.turns) for draft in drafts)
        self.counters["turns"] += sum(len(draft.turns) for draft in drafts)
        return [draft.turns for draft in drafts]

    def _write_turn(self, drafts: Sequence[_Draft]) -> None:
        """Write the next turn of every draft; one whose turn fails is over."""
        self._ask(drafts)
        written = [draft for draft in drafts if draft.standalone]
        self._look_for(written)
        for draft in drafts:
            draft.is_over = not draft.standalone or draft.rank is None
        going = [draft for draft in drafts if not draft.is_over]
        self._say(going)
        self._answer([draft for draft in going if not draft.is_last])
        for draft in going:
            draft.add_turn()

    def _ask(self, drafts: Sequence[_Draft]) -> None:
        """Write the self-contained questions, "" where that fails."""
        prompts = [ask_prompt(draft.planned.kind, draft.passage.full_text, draft.asked, *self._budget) for draft in drafts]
        for draft, one in zip(drafts, self._generated(prompts), strict=True):
            draft.standalone = self._text(one, parse_question(one.text, one.finish_reason), "question")

    def _look_for(self, drafts: Sequence[_Draft]) -> None:
        """Find the ranks of the passages; without a finder they stay 0."""
        if self._finder is None:
            return
        ids = [draft.passage.passage_id for draft in drafts]
        for draft, rank in zip(drafts, self._finder.ranks([draft.standalone for draft in drafts], ids), strict=True):
            draft.rank = rank
            self.counters["not_found"] += rank is None

    def _say(self, drafts: Sequence[_Draft]) -> None:
        """Write what the user says: within a topic it leaves out what is clear, else it is the question itself."""
        for draft in drafts:
            draft.message = draft.standalone
        within = [draft for draft in drafts if draft.stays]
        prompts = [follow_prompt(draft.standalone, draft.history, *self._budget) for draft in within]
        for draft, one in zip(within, self._generated(prompts), strict=True):
            found = parse_message(one.text, draft.standalone, one.finish_reason)
            draft.message = self._text(one, found, "message") or draft.standalone
        self.counters["as_asked"] += sum(draft.message == draft.standalone for draft in drafts)

    def _answer(self, drafts: Sequence[_Draft]) -> None:
        """Write the answers of turns that others follow, "" where that fails."""
        prompts = [answer_prompt(draft.standalone, draft.passage.full_text, *self._budget) for draft in drafts]
        for draft, one in zip(drafts, self._generated(prompts), strict=True):
            draft.answer = self._text(one, parse_answer(one.text, one.finish_reason), "answer")

    def _generated(self, prompts: list[str]) -> list[Generation]:
        """Return what the model, or the cache, has for each prompt."""
        if self._tokenizer.has_chat_template:
            prompts = [self._tokenizer.as_chat(prompt) for prompt in prompts]
        made, cached = cached_generate(self._engine, self._cache, VERSION, prompts, self._sampling)
        self.counters["prompts"] += len(prompts)
        self.counters["cached"] += cached
        return made

    def _text(self, made: Generation, parsed: ParsedRewrite, request: str) -> str:
        """Return what was found in a generation, "" for nothing, and count why."""
        failure = made.failure or parsed.failure
        if failure is not None:
            self.counters[f"failed.{request}.{failure.value}"] += 1
            return ""
        return parsed.text
