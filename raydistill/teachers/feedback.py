"""Retrieval feedback: how good a teacher's rewrite is by what it retrieves. Pure arrays.

Where gold passages are known the reward is the nDCG of the ranking; where they are not, how far the best passages stand out
from those below, which is what predictors of query performance after retrieval go by.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DEPTH = 10
"""Ranks that a reward looks at."""


def rewards(scores: NDArray[Any], relevant: NDArray[np.bool_] | None = None, depth: int = DEPTH) -> NDArray[np.float64]:
    """Return a reward for every teacher's ranking of a query's candidates; higher is better.

    Args:
        scores: float [..., T, C]; NaN where absent. Leading dimensions are queries.
        relevant: bool [..., C], gold passages; None where nobody judged.
        depth: ranks that count.

    Returns:
        float64 [..., T]; NaN for a teacher without any score. For a query with a gold passage `ndcg`, for others `margin`.
    """
    values = np.asarray(scores, dtype=np.float64)
    found = np.full(values.shape[:-1], np.nan)
    for place in np.ndindex(*values.shape[:-1]):
        own = values[place]
        kept = np.flatnonzero(~np.isnan(own))
        if len(kept) == 0:
            continue
        gold = None if relevant is None else relevant[place[:-1]]
        found[place] = (
            margin(own[kept], depth)
            if gold is None or not gold.any()
            else ndcg(own[kept], gold[kept], int(gold.sum()), depth)
        )
    return found


def ndcg(scores: NDArray[np.float64], relevant: NDArray[np.bool_], golds: int, depth: int = DEPTH) -> float:
    """Return nDCG@depth with binary gains of a ranking by score [C]; equal scores share the gain of their ranks.

    Args:
        golds: relevant passages in all, >= 1; those without a score are never found.
    """
    discount = np.zeros(max(len(scores), depth))
    discount[:depth] = 1.0 / np.log2(np.arange(depth) + 2.0)
    # Passages of one score come in no order of their own: each gets the mean discount of the ranks they take together.
    _, group, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    sums = np.concatenate([[0.0], np.cumsum(discount)])
    mean = (sums[ends] - sums[ends - counts]) / counts
    return float(mean[group][relevant].sum() / discount[: min(golds, depth)].sum())


def margin(scores: NDArray[np.float64], depth: int = DEPTH) -> float:
    """Return how far the best `depth` scores of [C] stand above the rest: (their mean - mean of all) / deviation of all.

    It changes neither with the scale of a teacher's scores nor with their origin. 0 where all scores are equal or no more
    than `depth` are there. In the spirit of predictors of query performance from the scores' spread (NQC; Shtok, Kurland,
    Carmel, Raiber, Markovits, TOIS 2012).
    """
    if len(scores) <= depth:
        return 0.0
    deviation = float(scores.std())
    if deviation <= 1e-12 * float(np.abs(scores).max()):
        return 0.0
    best = np.partition(scores, len(scores) - depth)[-depth:]
    return float((best.mean() - scores.mean()) / deviation)
