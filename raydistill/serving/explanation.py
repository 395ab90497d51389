"""The explanation of a score as the service tells it, terms by their names. Pure; see `index.explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raydistill.index.explain import Explanation


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one shared term adds: product = query_weight * passage_impact, in float32."""

    term: str
    query_weight: float
    passage_impact: float
    product: float


def contributions(explanation: Explanation, vocabulary: Sequence[str]) -> list[Contribution]:
    """Return the shared terms, the largest product first; `vocabulary` holds the terms' names by id."""
    found = explanation
    return [
        Contribution(
            vocabulary[int(found.terms[n])],
            float(found.query_weights[n]),
            float(found.impacts[n]),
            float(found.contributions[n]),
        )
        for n in found.order().tolist()
    ]
