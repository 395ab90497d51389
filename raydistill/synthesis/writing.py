"""Conversations written turn by turn, many side by side: a batch of prompts for each request of each turn. No Ray.

A conversation ends before the first turn that cannot be written or whose passage is not found again: what would come after
builds on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from raydistill.teachers.engine import Engine, Sampling
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
    """A conversation in the making."""

    plan: Plan
    turns: list[WrittenTurn] = field(default_factory=list)
    is_over: bool = False

    def planned(self, position: int) -> PlannedTurn:
        return self.plan.turns[position]

    def passage_id(self, position: int) -> str:
        return self.plan.passages[self.planned(position).topic]

    @property
    def history(self) -> list[tuple[str, str]]:
        return [(turn.message, turn.answer) for turn in self.turns]


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
        self._engine, self._tokenizer, self._max_tokens = engine, tokenizer, max_tokens
        self._cache, self._sampling, self._finder = cache, sampling, finder
        self.counters: Counter[str] = Counter()
        """Of everything written so far: prompts, cached, failed.{request}.{reason}, not_found, as_asked (turns that are said
        as the self-contained question is), turns, conversations."""

    def write(self, plans: Sequence[Plan], passages: Mapping[str, Passage]) -> list[list[WrittenTurn]]:
        """Return the turns of every plan's conversation, in order; none where the first one failed.

        Raises TeacherError when the engine cannot go on.
        """
        drafts = [_Draft(plan) for plan in plans]
        for position in range(max((len(plan.turns) for plan in plans), default=0)):
            self._write_turn([draft for draft in drafts if not draft.is_over and position < len(draft.plan.turns)], passages)
        self.counters["conversations"] += sum(bool(draft.turns) for draft in drafts)
        self.counters["turns"] += sum(len(draft.turns) for draft in drafts)
        return [draft.turns for draft in drafts]

    def _write_turn(self, drafts: list[_Draft], passages: Mapping[str, Passage]) -> None:
        """Write the next turn of every draft; one whose turn fails is over."""
        position = len(drafts[0].turns) if drafts else 0
        asked = self._generated(
            [
                ask_prompt(
                    draft.planned(position).kind,
                    passages[draft.passage_id(position)].full_text,
                    [turn.standalone for turn in draft.turns if turn.passage_id == draft.passage_id(position)],
                    self._max_tokens,
                    self._tokenizer.count_tokens,
                )
                for draft in drafts
            ],
            lambda number, text, reason: parse_question(text, reason),
            "question",
        )
        standalone = {id(draft): text for draft, text in zip(drafts, asked, strict=True) if text}
        ranks = self._ranks(drafts, standalone, position)
        going = []
        for draft in drafts:
            draft.is_over = id(draft) not in standalone or ranks[id(draft)] is None
            going += [] if draft.is_over else [draft]
        messages = self._messages(going, standalone, position)
        answers = self._answers(going, standalone, position, passages)
        for draft in going:
            draft.turns.append(
                WrittenTurn(
                    passage_id=draft.passage_id(position),
                    kind=draft.planned(position).kind,
                    standalone=standalone[id(draft)],
                    message=messages[id(draft)],
                    answer=answers.get(id(draft), ""),
                    rank=ranks[id(draft)] or 0,
                )
            )
            # Nothing can follow what was not answered.
            draft.is_over = id(draft) not in answers

    def _ranks(self, drafts: Sequence[_Draft], standalone: Mapping[int, str], position: int) -> dict[int, int | None]:
        """Return the rank of each written question's passage; 0 where nobody looks."""
        written = [draft for draft in drafts if id(draft) in standalone]
        if self._finder is None:
            return dict.fromkeys(map(id, written), 0)
        queries = [standalone[id(draft)] for draft in written]
        found = self._finder.ranks(queries, [draft.passage_id(position) for draft in written])
        self.counters["not_found"] += sum(rank is None for rank in found)
        return {id(draft): rank for draft, rank in zip(written, found, strict=True)}

    def _messages(self, drafts: Sequence[_Draft], standalone: Mapping[int, str], position: int) -> dict[int, str]:
        """Return what the user says: within a topic it leaves out what is clear, else it is the question itself."""
        said = {id(draft): standalone[id(draft)] for draft in drafts}
        within = [
            draft for draft in drafts if position > 0 and draft.planned(position).topic == draft.planned(position - 1).topic
        ]
        found = self._generated(
            [
                follow_prompt(standalone[id(draft)], draft.history, self._max_tokens, self._tokenizer.count_tokens)
                for draft in within
            ],
            lambda number, text, reason: parse_message(text, standalone[id(within[number])], reason),
            "message",
        )
        said.update((id(draft), text) for draft, text in zip(within, found, strict=True) if text)
        self.counters["as_asked"] += sum(said[id(draft)] == standalone[id(draft)] for draft in drafts)
        return said

    def _answers(
        self, drafts: Sequence[_Draft], standalone: Mapping[int, str], position: int, passages: Mapping[str, Passage]
    ) -> dict[int, str]:
        """Return the answers of the turns that others follow."""
        followed = [draft for draft in drafts if position + 1 < len(draft.plan.turns)]
        found = self._generated(
            [
                answer_prompt(
                    standalone[id(draft)],
                    passages[draft.passage_id(position)].full_text,
                    self._max_tokens,
                    self._tokenizer.count_tokens,
                )
                for draft in followed
            ],
            lambda number, text, reason: parse_answer(text, reason),
            "answer",
        )
        return {id(draft): text for draft, text in zip(followed, found, strict=True) if text}

    def _generated(self, prompts: list[str], parse: Callable[[int, str, str], ParsedRewrite], request: str) -> list[str]:
        """Return the text of every prompt, "" where there is none, and count why.

        Args:
            parse: (number of the prompt, what was written, how it ended) -> what is in it.
        """
        if self._tokenizer.has_chat_template:
            prompts = [self._tokenizer.as_chat(prompt) for prompt in prompts]
        made, cached = cached_generate(self._engine, self._cache, VERSION, prompts, self._sampling)
        self.counters["prompts"] += len(prompts)
        self.counters["cached"] += cached
        texts = []
        for number, one in enumerate(made):
            found = ParsedRewrite("", one.failure) if one.failure else parse(number, one.text, one.finish_reason)
            if found.failure is not None:
                self.counters[f"failed.{request}.{found.failure.value}"] += 1
            texts.append(found.text)
        return texts
