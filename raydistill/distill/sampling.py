"""Which candidates of a query enter a training step: a pure function of (seed, epoch, query id).

The draw does not depend on worker, world size, batch or resume point, so two runs of one configuration see the same
passages. What the policies mean to a user stands in `raydistill.config.sampling`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.config.sampling import Importance, Quantiles, SamplingConfig, SamplingPolicy, Top, Uniform, Window

_NONE = np.zeros(0, dtype=np.int64)
_CERTAIN = 1.0 - 1e-9
"""Inclusion probability from which on a unit is taken for certain, so that rounding cannot draw it twice."""


@dataclass(frozen=True)
class Sample:
    """Drawn candidates of one query: golds first (unless gold is none), then the `top` best, then the `student_top` best by
    the student, then those of the policy.

    Attributes:
        positions: int64 [k], k <= SamplingConfig.passages; positions in the query's candidate arrays, no repeats.
        positive: bool [k]; the passage is gold.
        log_weight: float32 [k]; log of the inverse inclusion probability under the importance policy, else 0.
    """

    positions: NDArray[np.int64]
    positive: NDArray[np.bool_]
    log_weight: NDArray[np.float32]


def generator(seed: int, epoch: int, name: str) -> np.random.Generator:
    """Return a random generator that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def draw(
    scores: NDArray[np.float32],
    gold_positions: NDArray[np.int64],
    sampling: SamplingConfig,
    seed: int,
    epoch: int,
    query_id: str,
    student_best: NDArray[np.int64] = _NONE,
) -> Sample:
    """Draw the candidates of one visit to a query.

    Candidates are ranked by the teachers' combined score, best first, ties by position. Unless sampling.gold is none, a
    gold passage that takes no place of its own takes none at all: it is never a negative. Where there are fewer
    candidates than places, all of them are taken and the sample is smaller (policy window: those up to its last rank).

    Args:
        scores: float32 [C], C >= 1, finite: the teachers' combined scores.
        gold_positions: int64 [G]; candidates that are gold, ascending.
        sampling: how many, and by which policy.
        seed, epoch, query_id: what the draw depends on.
        student_best: int64 [S]; candidates that an earlier student ranks highest, best first; for sampling.student_top.
    """
    random = generator(seed, epoch, query_id)
    ranking = np.argsort(-scores, kind="stable")
    golds = _forced_golds(gold_positions, sampling, random)
    is_gold = _marked(gold_positions, len(scores))
    ranks = np.arange(len(ranking)) if sampling.gold == "none" else np.flatnonzero(~is_gold[ranking])
    candidates = ranking[ranks]
    best = candidates[: min(int(np.searchsorted(ranks, sampling.top)), sampling.passages - len(golds))]
    others, ranks = candidates[len(best) :], ranks[len(best) :]
    liked = student_best[:0]
    if sampling.student_top and len(student_best):
        liked = student_best[_marked(others, len(scores))[student_best]]
        liked = liked[: min(sampling.student_top, sampling.passages - len(golds) - len(best))]
        left = ~_marked(liked, len(scores))[others]
        others, ranks = others[left], ranks[left]
    places = min(sampling.passages - len(golds) - len(best) - len(liked), len(others))
    drawn, log_weight = _DRAWS[type(sampling.policy)](sampling.policy, scores[others], ranks, places, random)
    positions = np.concatenate([golds, best, liked, others[drawn]]).astype(np.int64)
    weights = np.zeros(len(positions), dtype=np.float32)
    weights[len(golds) + len(best) + len(liked) :] = log_weight
    return Sample(positions, is_gold[positions], weights)


def _marked(positions: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Return bool [size], True at the positions."""
    marks = np.zeros(size, dtype=bool)
    marks[positions] = True
    return marks


def _forced_golds(
    gold_positions: NDArray[np.int64], sampling: SamplingConfig, random: np.random.Generator
) -> NDArray[np.int64]:
    """Return the gold passages that take places, in random order where not all of them do."""
    most = {"none": 0, "one": 1, "all": sampling.passages - 1}[sampling.gold]
    if len(gold_positions) <= most and sampling.gold == "all":
        return gold_positions
    if not len(gold_positions) or not most:
        return gold_positions[:0]
    return random.choice(gold_positions, size=most, replace=False)


# The policies. Each gets the other candidates, best first: float32 [N] scores and int64 [N] 0-based ranks among all
# candidates, and the number of places, at most N. It returns int64 positions in them, no repeats, and log weights.

_Drawn = tuple[NDArray[np.int64], NDArray[np.float32] | float]


def _uniform(
    policy: Uniform, scores: NDArray[np.float32], ranks: NDArray[np.int64], places: int, random: np.random.Generator
) -> _Drawn:
    return random.choice(len(scores), size=places, replace=False), 0.0


def _top(
    policy: Top, scores: NDArray[np.float32], ranks: NDArray[np.int64], places: int, random: np.random.Generator
) -> _Drawn:
    return np.arange(places), 0.0


def _window(
    policy: Window, scores: NDArray[np.float32], ranks: NDArray[np.int64], places: int, random: np.random.Generator
) -> _Drawn:
    start, stop = np.searchsorted(ranks, [policy.first - 1, policy.last])
    # Too few in the window: the worst of those above it join.
    start = max(0, min(start, stop - places))
    return start + random.choice(stop - start, size=min(places, stop - start), replace=False), 0.0


def _quantiles(
    policy: Quantiles, scores: NDArray[np.float32], ranks: NDArray[np.int64], places: int, random: np.random.Generator
) -> _Drawn:
    size = len(scores)
    if policy.edges == "mass":
        ends = np.linspace(0, size, policy.bins + 1).round().astype(np.int64)
    else:
        # Scores descend, so bins are runs of positions here too.
        cuts = np.linspace(float(scores[0]), float(scores[-1]), policy.bins + 1)[1:-1] if size else np.zeros(0)
        ends = np.concatenate([[0], np.searchsorted(-scores.astype(np.float64), -cuts), [size]]).astype(np.int64)
    counts = _even_shares(np.diff(ends), places, random)
    drawn = [
        start + random.choice(stop - start, size=count, replace=False)
        for start, stop, count in zip(ends[:-1], ends[1:], counts, strict=True)
        if count
    ]
    return np.concatenate([np.zeros(0, dtype=np.int64), *drawn]), 0.0


def _even_shares(sizes: NDArray[np.int64], total: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Share `total` out over bins as evenly as their sizes allow; bins that get one more are chosen at random."""
    counts = np.zeros(len(sizes), dtype=np.int64)
    while missing := total - int(counts.sum()):
        roomy = np.flatnonzero(counts < sizes)
        if missing < len(roomy):
            counts[random.choice(roomy, size=missing, replace=False)] += 1
        else:
            counts[roomy] += np.minimum(missing // len(roomy), (sizes - counts)[roomy])
    return counts


def _importance(
    policy: Importance, scores: NDArray[np.float32], ranks: NDArray[np.int64], places: int, random: np.random.Generator
) -> _Drawn:
    if not places:
        return np.zeros(0, dtype=np.int64), 0.0
    scaled = scores.astype(np.float64) / policy.tau
    favour = np.exp(scaled - scaled.max())
    sizes = (1.0 - policy.uniform) * favour / favour.sum() + policy.uniform / len(scores)
    probability = inclusion_probabilities(sizes, places)
    drawn = systematic_sample(probability, random)
    return drawn, -np.log(probability[drawn]).astype(np.float32)


def inclusion_probabilities(sizes: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """Return the probabilities that sum to `number` and are proportional to the sizes, but for those capped at 1.

    Args:
        sizes: float64 [N], > 0. number: 1..N.

    Returns:
        float64 [N] in (0, 1]. Units that would exceed 1 are certain; what they leave is shared out among the others, and
        so on until none exceeds 1 (Särndal, Swensson and Wretman 1992, section 3.6.2).
    """
    probability = np.ones(len(sizes))
    free = np.ones(len(sizes), dtype=bool)
    while (left := number - int((~free).sum())) and number < len(sizes):
        share = left * sizes[free] / sizes[free].sum()
        probability[free] = np.minimum(share, 1.0)
        certain = share > _CERTAIN
        if not certain.any():
            break
        probability[np.flatnonzero(free)[certain]] = 1.0
        free[np.flatnonzero(free)[certain]] = False
    return probability


def systematic_sample(probability: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """Return positions of units drawn without repeats, unit i with exactly the given probability (Madow, 1949).

    Certain units are taken. The others are put in random order on a line, each as long as its probability, and a comb of
    unit distance and random offset picks those under its teeth. How many are drawn is the sum of the probabilities,
    which must be whole.

    Returns:
        int64 [sum of probabilities].
    """
    certain = np.flatnonzero(probability >= 1.0)
    open_units = np.flatnonzero(probability < 1.0)
    number = round(float(probability[open_units].sum()))
    if not number:
        return certain
    order = random.permutation(open_units)
    ends = np.cumsum(probability[order])
    ends *= number / ends[-1]
    # No tooth stands beyond the last end, whatever the rounding.
    teeth = np.minimum(random.random() + np.arange(number), np.nextafter(ends[-1], 0.0))
    return np.concatenate([certain, order[np.searchsorted(ends, teeth, side="right")]])


_Policy = Callable[[Any, NDArray[np.float32], NDArray[np.int64], int, np.random.Generator], _Drawn]
_DRAWS: dict[type[SamplingPolicy], _Policy] = {
    Window: _window,
    Uniform: _uniform,
    Top: _top,
    Quantiles: _quantiles,
    Importance: _importance,
}
