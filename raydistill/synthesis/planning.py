"""Which passage each turn of a synthetic conversation is about, and of what kind it is, before anything is written. Pure.

Drawn for each conversation by its number and the seed alone, so that another number of conversations or workers changes
none of them but by the passages they get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raydistill.config.synthesis import TurnKind
from raydistill.distill.sampling import generator


@dataclass(frozen=True, slots=True)
class PlannedTurn:
    """A turn to be written: `topic` counts the passages of its conversation from 0, `kind` is what it is."""

    topic: int
    kind: TurnKind


@dataclass(frozen=True, slots=True)
class Plan:
    """A conversation to be written: its turns, and the passages of its topics."""

    number: int
    turns: tuple[PlannedTurn, ...]
    passages: tuple[str, ...] = ()

    @property
    def topics(self) -> int:
        """Passages that it needs."""
        return self.turns[-1].topic + 1


def drawn_plans(
    conversations: int, turns: int, topic_switch: float, kinds: Mapping[TurnKind, float], seed: int
) -> list[Plan]:
    """Return the plans of conversations, without passages.

    Args:
        topic_switch: probability that a later turn goes on to another passage.
        kinds: weight of every kind of turn; at least one is positive.
    """
    names = sorted(kinds)
    weights = np.array([kinds[name] for name in names], dtype=np.float64)
    plans = []
    for number in range(conversations):
        random = generator(seed, number, "synthesis")
        switches = np.concatenate([[False], random.random(turns - 1) < topic_switch])
        chosen = random.choice(len(names), size=turns, p=weights / weights.sum())
        topics = np.cumsum(switches).tolist()
        plans.append(
            Plan(number, tuple(PlannedTurn(topic, names[kind]) for topic, kind in zip(topics, chosen, strict=True)))
        )
    return plans


def with_passages(plans: Sequence[Plan], passage_ids: Sequence[str]) -> list[Plan]:
    """Return the plans with passages in order; where there are too few, they are taken again from the first on.

    A conversation never has a passage twice, as far as there are enough.
    """
    given, place = [], 0
    for plan in plans:
        own = tuple(passage_ids[(place + topic) % len(passage_ids)] for topic in range(plan.topics))
        given.append(Plan(plan.number, plan.turns, own))
        place += plan.topics
    return given
