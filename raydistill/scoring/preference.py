"""Strengths from comparisons of pairs: the Bradley-Terry model with soft outcomes. Pure arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PRIOR = 0.01
"""Weight of the penalty on squared strengths: keeps them finite where someone wins, or loses, everything."""
_STEPS = 100


def bradley_terry(
    first: NDArray[np.int64], second: NDArray[np.int64], log_odds: NDArray[np.float64], items: int, prior: float = PRIOR
) -> NDArray[np.float64]:
    """Return the strength of every item, float64 [items], such that first beats second with log-odds strength[first] -
    strength[second] (Bradley and Terry 1952), for outcomes that are probabilities.

    Maximises sum_e p_e log s(d_e) + (1 - p_e) log s(-d_e) - prior / 2 sum_i strength_i^2 with s the logistic function,
    p = s(log_odds), d the difference of strengths; by Newton's method, since it is strictly concave. Strengths sum to 0.

    Args:
        first, second: int64 [E], the items of each comparison.
        log_odds: float64 [E], of first being better; NaN comparisons are left out.
        prior: > 0.

    An item that nobody was compared with gets NaN.
    """
    told = ~np.isnan(log_odds)
    one, other, outcome = first[told], second[told], _logistic(log_odds[told])
    strength = np.zeros(items)
    for _ in range(_STEPS):
        expected = _logistic(strength[one] - strength[other])
        surplus = outcome - expected
        gradient = np.bincount(one, surplus, items) - np.bincount(other, surplus, items) - prior * strength
        weight = expected * (1.0 - expected)
        hessian = np.zeros((items, items))
        np.add.at(hessian, (one, one), weight)
        np.add.at(hessian, (other, other), weight)
        np.add.at(hessian, (one, other), -weight)
        np.add.at(hessian, (other, one), -weight)
        step = np.linalg.solve(hessian + prior * np.eye(items), gradient)
        # Where outcomes are near certain the curvature is small and a whole step may overshoot.
        step *= min(1.0, 4.0 / max(float(np.abs(step).max(initial=0.0)), 1e-300))
        strength += step
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    compared = np.zeros(items, dtype=bool)
    compared[one] = compared[other] = True
    return np.where(compared, strength, np.nan)


def schedule(items: int, opponents: int) -> list[tuple[int, int]]:
    """Return which pairs are compared: each item with those 1, 2, 3 … and so on places before and after it in the first
    order, up to `opponents` of them on average; every pair where that is fewer.

    Neighbours decide a ranking, and few of the distances reach across it: half of them are the next places, half are spread
    over powers of two, so that strengths far apart hang together too.
    """
    if opponents >= items - 1:
        return [(one, other) for one in range(items) for other in range(one + 1, items)]
    wanted = max(1, opponents // 2)
    near = -(-wanted // 2)
    distances = list(range(1, near + 1))
    power = 2
    while len(distances) < wanted and power < items:
        if power > near:
            distances.append(power)
        power *= 2
    distances += [each for each in range(near + 1, items) if each not in distances][: wanted - len(distances)]
    return [(one, one + distance) for distance in sorted(distances) for one in range(items - distance)]


def _logistic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)))
