"""Why a passage has its score: what each term that query and passage share contributes. Pure array code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Explanation:
    """The parts of one (query, passage) score, S shared terms in ascending order of their ids.

    Attributes:
        terms: int32 [S].
        query_weights, impacts: float32 [S].
        contributions: float32 [S]; query weight * impact.
        score: float32; the contributions added in this order in float32, which is the score to the bit.
    """

    terms: NDArray[np.int32]
    query_weights: NDArray[np.float32]
    impacts: NDArray[np.float32]
    contributions: NDArray[np.float32]
    score: np.float32

    def order(self) -> NDArray[np.int64]:
        """Return the places of the terms, int64 [S], largest contribution first, of equal ones the lower id."""
        return np.lexsort((self.terms, -self.contributions)).astype(np.int64)

    def heaviest(self, count: int) -> list[tuple[int, float]]:
        """Return (term, contribution) of the terms that contribute most, in this order."""
        order = self.order()[:count]
        return list(zip(self.terms[order].tolist(), self.contributions[order].tolist(), strict=True))


def explain(
    query_terms: NDArray[np.int32],
    query_weights: NDArray[np.float32],
    passage_terms: NDArray[np.int32],
    impacts: NDArray[np.float32],
) -> Explanation:
    """Return how two sparse vectors with ascending terms make their score."""
    terms, of_query, of_passage = np.intersect1d(query_terms, passage_terms, assume_unique=True, return_indices=True)
    weights, shared = query_weights[of_query], impacts[of_passage]
    contributions = weights * shared
    # A cumulative sum adds one after another; numpy's sum adds in pairs and rounds otherwise.
    score = np.cumsum(contributions, dtype=np.float32)[-1] if len(terms) else np.float32(0.0)
    return Explanation(terms, weights, shared, contributions, np.float32(score))
