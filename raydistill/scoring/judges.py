"""How well passages fit a query, by a language model: one passage at a time, several, or two against each other. Pure.

    pointwise   log P(yes) - log P(no) after a prompt with one passage
    listwise    FIRST (Reddy et al., arXiv 2406.15657): windows of passages with a letter each slide from the end of the
                first order to its top; in each the letters' log-probabilities after the prompt are the new order. What
                comes out is an order; the score of rank r of n is log((n - r + 1/2) / (r - 1/2)), the log-odds of beating a
                passage of the list drawn at random
    pairwise    PRP (Qin et al., arXiv 2306.17563) with soft outcomes: each pair is asked in both orders, and the mean of
                log P(A) - log P(B) is the log-odds that the first is better; `preference.bradley_terry` makes one strength a
                passage of them

Every judge takes many turns at once, since an engine is only fast with many prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raydistill.scoring.choosing import cached_choose
from raydistill.scoring.preference import bradley_terry, schedule
from raydistill.scoring.prompts import ScoringPrompt, render
from raydistill.teachers.cache import GenerationCache
from raydistill.teachers.engine import ChoosingEngine, Failure
from raydistill.teachers.rewriting import PromptTokenizer


@dataclass(frozen=True)
class Candidates:
    """A query and the passages to be judged, best first by the first stage."""

    query: str
    passages: Sequence[str]


@dataclass
class Tally:
    """What was asked: prompts, how many of them came from the cache, their tokens, and failures by kind.

    Attributes:
        prompt_tokens: of a language model's prompts, cached ones too; estimated where the model's tokenizer is not here.
    """

    prompts: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    failed: dict[str, int] = field(default_factory=dict)

    def counters(self) -> dict[str, float]:
        """Return the numbers by name."""
        return {
            "prompts": self.prompts,
            "cached": self.cached,
            "prompt_tokens": self.prompt_tokens,
            "failed": sum(self.failed.values()),
            **{f"failed.{kind}": count for kind, count in self.failed.items()},
        }


class Judge(Protocol):
    """Scores passages."""

    def judge(self, turns: Sequence[Candidates], tally: Tally) -> list[NDArray[np.float64]]:
        """Return the log-odds of every turn's passages, float64 [passages] each, NaN where there are none; add to the
        tally. Raises TeacherError when the model cannot go on."""


@dataclass(frozen=True)
class Asker:
    """A language model with all that asking it needs.

    Attributes:
        max_tokens: budget of a prompt.
        answers: what it chooses between, each a single token of the model; see `opening.written_answers`.
    """

    engine: ChoosingEngine
    tokenizer: PromptTokenizer
    cache: GenerationCache
    prompt: ScoringPrompt
    max_tokens: int
    answers: tuple[str, ...]

    def ask(
        self, asked: Sequence[tuple[str, Sequence[str]]], tally: Tally
    ) -> tuple[NDArray[np.float64], tuple[Failure | None, ...]]:
        """Return log-probabilities [prompts, options] for pairs of a query and the passages of one prompt."""
        as_chat = self.tokenizer.as_chat if self.tokenizer.has_chat_template else None
        texts = [
            render(self.prompt, query, passages, self.max_tokens, self.tokenizer.count_tokens, as_chat)
            for query, passages in asked
        ]
        found = cached_choose(self.engine, self.cache, self.prompt.name, texts, self.answers)
        tally.prompts += len(texts)
        tally.cached += found.cached
        tally.prompt_tokens += sum(map(self.tokenizer.count_tokens, texts))
        for failure in found.failures:
            if failure is not None:
                tally.failed[failure.value] = tally.failed.get(failure.value, 0) + 1
        return found.log_probabilities, found.failures


@dataclass(frozen=True)
class Pointwise:
    """One passage at a time."""

    asker: Asker

    def judge(self, turns: Sequence[Candidates], tally: Tally) -> list[NDArray[np.float64]]:
        """See `Judge`."""
        asked = [(turn.query, [passage]) for turn in turns for passage in turn.passages]
        values, _ = self.asker.ask(asked, tally)
        return _split(values[:, 0] - values[:, 1], [len(turn.passages) for turn in turns])


@dataclass(frozen=True)
class Pairwise:
    """Two passages against each other; each with about `opponents` others, see `preference.schedule`."""

    asker: Asker
    opponents: int = 10

    def judge(self, turns: Sequence[Candidates], tally: Tally) -> list[NDArray[np.float64]]:
        """See `Judge`. A turn with one passage has nothing to compare: its score is 0."""
        pairs = [schedule(len(turn.passages), self.opponents) for turn in turns]
        asked = [
            (turn.query, [turn.passages[one], turn.passages[other]])
            for turn, own in zip(turns, pairs, strict=True)
            for first, second in own
            for one, other in ((first, second), (second, first))
        ]
        values, _ = self.asker.ask(asked, tally)
        for_a = (values[:, 0] - values[:, 1]).reshape(-1, 2)
        # The second prompt of a pair has the passages exchanged; a model's liking for a place cancels.
        outcomes = _split((for_a[:, 0] - for_a[:, 1]) / 2.0, [len(own) for own in pairs])
        return [
            _strengths(len(turn.passages), own, outcome) for turn, own, outcome in zip(turns, pairs, outcomes, strict=True)
        ]


@dataclass(frozen=True)
class Listwise:
    """Windows of passages that slide to the top of the list.

    Attributes:
        window: passages in a prompt, at most 26.
        step: places by which the window moves; the best `window - step` of one go on into the next.
    """

    asker: Asker
    window: int = 20
    step: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.step < self.window <= len(self.asker.answers):
            raise ValueError(
                f"needs 0 < step < window <= {len(self.asker.answers)}, not step {self.step} and window {self.window}"
            )

    def judge(self, turns: Sequence[Candidates], tally: Tally) -> list[NDArray[np.float64]]:
        """See `Judge`. A window that fails keeps its order; a turn of which all fail has no scores."""
        orders = [np.arange(len(turn.passages)) for turn in turns]
        starts = [self.starts(len(turn.passages)) for turn in turns]
        answered = np.zeros(len(turns), dtype=bool)
        # All turns' first windows are asked together, then all their second ones.
        for number in range(max(map(len, starts), default=0)):
            asked = [turn for turn in range(len(turns)) if number < len(starts[turn])]
            places = [slice(starts[turn][number], starts[turn][number] + self.window) for turn in asked]
            values, failures = self._ask(turns, orders, asked, places, tally)
            for turn, place, row, failure in zip(asked, places, values, failures, strict=True):
                if failure is None:
                    inside = orders[turn][place]
                    liking = row[: len(inside)]
                    # Letters that the model did not mention stay behind the others, in their order.
                    orders[turn][place] = inside[np.argsort(-np.where(np.isnan(liking), -np.inf, liking), kind="stable")]
                    answered[turn] = True
        return [
            _rank_log_odds(order) if told else np.full(len(order), np.nan)
            for order, told in zip(orders, answered, strict=True)
        ]

    def starts(self, passages: int) -> list[int]:
        """Return where the windows begin over so many passages, from the end to the top."""
        if passages == 0:
            return []
        first = max(0, passages - self.window)
        return [*range(first, 0, -self.step), 0]

    def _ask(
        self,
        turns: Sequence[Candidates],
        orders: Sequence[NDArray[np.int64]],
        asked: Sequence[int],
        places: Sequence[slice],
        tally: Tally,
    ) -> tuple[NDArray[np.float64], tuple[Failure | None, ...]]:
        prompts = [
            (turns[turn].query, [turns[turn].passages[number] for number in orders[turn][place].tolist()])
            for turn, place in zip(asked, places, strict=True)
        ]
        return self.asker.ask(prompts, tally)


def _split(values: NDArray[np.float64], sizes: Sequence[int]) -> list[NDArray[np.float64]]:
    return np.split(values, np.cumsum(sizes)[:-1].tolist()) if sizes else []


def _strengths(passages: int, pairs: Sequence[tuple[int, int]], log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    if passages < 2:
        return np.zeros(passages)
    first, second = np.array(pairs, dtype=np.int64).T
    return bradley_terry(first, second, log_odds, passages)


def _rank_log_odds(order: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the score of every item by its rank; order: items, best first."""
    ranks = np.arange(1, len(order) + 1)
    scores = np.zeros(len(order))
    scores[order] = np.log((len(order) - ranks + 0.5) / (ranks - 0.5))
    return scores
