"""How sure a mean or a difference of means is: bootstrap intervals, paired tests, correction for many comparisons.

Pure numpy, seeded: the same values and seed give the same numbers on every machine. Resamples are drawn in blocks, so
memory stays at some megabytes whatever the number of queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_BLOCK_CELLS = 2_000_000

Test = Literal["randomisation", "t"]


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two systems over the same queries.

    Attributes:
        difference: mean of first minus second, with its bootstrap interval.
        p_value: two-sided.
        wins, losses: queries on which the first is better, worse; the rest are ties.
    """

    difference: Interval
    p_value: float
    wins: int
    losses: int


def mean_interval(values: NDArray[np.float64], samples: int, seed: int, confidence: float = 0.95) -> Interval:
    """Return the mean of `values` [Q] with its percentile bootstrap interval (Efron 1979).

    Raises ValueError when there is no value, or no sample is asked for.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0 or samples < 1:
        raise ValueError(f"a bootstrap needs values and samples, got {values.size} values and {samples} samples")
    draws = _blocks(lambda generator, shape: generator.integers(0, values.size, shape), values.size, samples, seed)
    means = np.concatenate([values[rows].mean(axis=1) for rows in draws])
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def compare(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    samples: int,
    seed: int,
    test: Test = "randomisation",
) -> Comparison:
    """Compare two systems on the same queries, [Q] each, in the same order.

    Args:
        first, second: per-query values.
        samples: bootstrap resamples of the difference; the randomisation test draws ten times as many sign flips, because
            its smallest p, one in their number, must survive a correction for many comparisons.
        seed: of both.
        test: "randomisation" assumes nothing about the distribution (Smucker, Allan, Carterette, CIKM 2007); "t" is
            Student's paired t-test.

    Raises ValueError for different or empty lengths.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.size == 0:
        raise ValueError(f"paired comparison needs as many values on both sides, got {first.shape} and {second.shape}")
    difference = first - second
    p_value = paired_t_p(difference) if test == "t" else randomisation_p(difference, 10 * samples, seed)
    return Comparison(
        mean_interval(difference, samples, seed), p_value, int((difference > 0).sum()), int((difference < 0).sum())
    )


def randomisation_p(difference: NDArray[np.float64], samples: int, seed: int) -> float:
    """Return the two-sided p of a mean of 0 for paired differences [Q], from random sign flips.

    The observed assignment counts as one sample, so p is never 0 (Phipson and Smyth 2010).
    """
    observed = abs(float(difference.sum()))
    tolerance = 1e-12 * max(1.0, float(np.abs(difference).sum()))
    extreme = 0
    draws = _blocks(lambda generator, shape: generator.integers(0, 2, shape, dtype=np.int8), difference.size, samples, seed)
    for flips in draws:
        extreme += int(np.count_nonzero(np.abs((2.0 * flips - 1.0) @ difference) >= observed - tolerance))
    return (extreme + 1) / (samples + 1)


def paired_t_p(difference: NDArray[np.float64]) -> float:
    """Return the two-sided p of Student's paired t-test; 1 for differences that are all 0 or for a single query."""
    size = difference.size
    if size < 2 or not np.any(difference):
        return 1.0
    deviation = float(difference.std(ddof=1))
    if deviation == 0.0:
        return 0.0
    t = float(difference.mean()) / (deviation / math.sqrt(size))
    freedom = size - 1
    return _regularised_beta(freedom / (freedom + t * t), freedom / 2.0, 0.5)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for as many comparisons by Holm's step-down method (1979), in the same order."""
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, position in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = highest
    return adjusted


def _blocks(
    draw: Callable[[np.random.Generator, tuple[int, int]], NDArray], width: int, samples: int, seed: int
) -> Iterator[NDArray]:
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK_CELLS // width)
    for start in range(0, samples, rows):
        yield draw(generator, (min(rows, samples - start), width))


def _regularised_beta(x: float, a: float, b: float) -> float:
    """Return I_x(a, b), 0 <= x <= 1, by its continued fraction (DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):  # there the fraction of the complement converges fast
        return 1.0 - _regularised_beta(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    # About sqrt(max(a, b)) terms are enough (Press et al., Numerical Recipes, 6.4); evaluated from the innermost outwards.
    inner = 0.0
    for m in range(100 + 5 * math.isqrt(int(max(a, b))), 0, -1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        inner = even / (1.0 + inner)
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        inner = odd / (1.0 + inner)
    return math.exp(log_front) / a / (1.0 + inner)
