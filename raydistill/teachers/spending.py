"""Which turns a teacher is asked about, when asking about all would cost too much. Pure: what it goes by is handed in.

Three things are known before a teacher is asked: whether a turn has a history at all, how much of its meaning an earlier
student takes from the history, and how far cheaper teachers disagree about it. A turn that needs no context is its own
rewrite; of the others, those that teachers disagree about come first, until the budget is used up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from raydistill.config import SpendConfig
from raydistill.conversations.records import ConversationalQuery


class Decision(StrEnum):
    """What becomes of a turn. The value is what is stored."""

    ASK = "ask"
    SELF_CONTAINED = "self_contained"
    """The question is its own rewrite."""
    OVER_BUDGET = "over_budget"
    """The teacher has no opinion on it."""


@dataclass(frozen=True)
class Decisions:
    """What becomes of every turn, and what that is estimated to cost.

    Attributes:
        of: query id -> decision.
        tokens: estimated prompt and new tokens of the turns that are asked.
        tokens_of_all: the same of all turns.
        dollars, dollars_of_all: likewise; 0 without prices.
    """

    of: Mapping[str, Decision]
    tokens: int
    tokens_of_all: int
    dollars: float
    dollars_of_all: float

    def counts(self) -> dict[str, float]:
        """Return the numbers by name: turns by decision, and the estimates."""
        every = list(self.of.values())
        return {
            **{decision.value: every.count(decision) for decision in Decision},
            "estimated_tokens": self.tokens,
            "estimated_tokens_of_all": self.tokens_of_all,
            "estimated_dollars": round(self.dollars, 6),
            "estimated_dollars_of_all": round(self.dollars_of_all, 6),
        }


def decide(
    queries: Sequence[ConversationalQuery],
    spend: SpendConfig,
    tokens: Callable[[ConversationalQuery], tuple[int, int]],
    agreement: Mapping[str, float] | None = None,
    disagreement: Mapping[str, float] | None = None,
) -> Decisions:
    """Decide for every turn; the same inputs give the same decisions.

    Args:
        queries: all turns, in order.
        tokens: estimated prompt and new tokens of a turn.
        agreement: query id -> how alike a student's vectors of the last turn and of the conversation are, 0 to 1; for
            skip: self-contained. A turn that is not in it is asked.
        disagreement: query id -> see `disagreements`; for order: disagreement. Turns that are not in it come last.
    """
    of: dict[str, Decision] = {}
    asked: list[ConversationalQuery] = []
    for query in queries:
        if _is_self_contained(query, spend, agreement or {}):
            of[query.query_id] = Decision.SELF_CONTAINED
        else:
            asked.append(query)
    if spend.order == "disagreement":
        told = disagreement or {}
        asked.sort(key=lambda query: (-told.get(query.query_id, -1.0), query.query_id))
    costs = {query.query_id: tokens(query) for query in queries}
    calls = used = 0
    dollars = 0.0
    for query in asked:
        own = costs[query.query_id]
        price = _dollars(own, spend)
        fits = (
            (spend.calls is None or calls + 1 <= spend.calls)
            and (spend.tokens is None or used + sum(own) <= spend.tokens)
            and (spend.dollars is None or dollars + price <= spend.dollars)
        )
        of[query.query_id] = Decision.ASK if fits else Decision.OVER_BUDGET
        if fits:
            calls, used, dollars = calls + 1, used + sum(own), dollars + price
    return Decisions(
        {query.query_id: of[query.query_id] for query in queries},
        used,
        sum(map(sum, costs.values())),
        dollars,
        sum(_dollars(own, spend) for own in costs.values()),
    )


def disagreements(rewrites: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Return query id -> how far several teachers' rewrites differ: the mean over pairs of 1 - |A n B| / |A u B|, A and B
    being the sets of their words. Turns that fewer than two have a rewrite of are left out."""
    found: dict[str, float] = {}
    for query_id in dict.fromkeys(key for teacher in rewrites for key in teacher):
        words = [set(teacher[query_id].casefold().split()) for teacher in rewrites if query_id in teacher]
        pairs = [1.0 - len(one & other) / max(1, len(one | other)) for one, other in combinations(words, 2)]
        if pairs:
            found[query_id] = sum(pairs) / len(pairs)
    return found


def _is_self_contained(query: ConversationalQuery, spend: SpendConfig, agreement: Mapping[str, float]) -> bool:
    if spend.skip == "nothing":
        return False
    if not query.history:
        return True
    return spend.skip == "self-contained" and agreement.get(query.query_id, 0.0) >= spend.agreement


def _dollars(tokens: tuple[int, int], spend: SpendConfig) -> float:
    return (tokens[0] * spend.prompt_price + tokens[1] * spend.generated_price) / 1e6
