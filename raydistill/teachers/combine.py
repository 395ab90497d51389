"""How the scores of several teachers for a passage become one. Pure arrays; where the scores come from lives in index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from raydistill.config import WEIGHTED_COMBINATIONS, Combination
from raydistill.teachers.feedback import rewards

COMBINATIONS: tuple[Combination, ...] = get_args(Combination)
RANK_CONSTANT = 60
"""Of reciprocal rank fusion, as in its paper."""


def combine(
    scores: NDArray[Any],
    how: Combination,
    weights: Sequence[float] | None = None,
    relevant: NDArray[np.bool_] | None = None,
) -> NDArray[Any]:
    """Return one score a candidate from those of T teachers.

    NaN marks an absent score. What absence means is the same for every `how`:

    - A teacher that is absent for all candidates of a query (it failed to rewrite it) is left out of that query, and so is
      one that weighs 0, unless nobody else is there.
    - A candidate that lacks the score of a teacher that is otherwise present is absent in the result (NaN): an average over
      whichever teachers happened to score a passage would not be comparable between passages. It also stays out of the
      statistics of a teacher's scores. With exact scores for the union of candidates this does not occur.
    - Without any teacher, the whole result is NaN; the caller leaves the query out.

    Args:
        scores: float [..., T, C]; leading dimensions are queries.
        how: how the teachers' scores of a query become one score a candidate:

            mean, max, min      of the scores as they are
            zscore_mean         each teacher's scores are shifted and scaled to mean 0 and standard deviation 1 (population)
                                first; a teacher that gives every candidate the same score says nothing and counts 0
            minmax_mean         likewise to the range from 0 to 1
            rank_fusion         mean of 61 / (60 + rank): reciprocal rank fusion (Cormack, Clarke, Buettcher, SIGIR 2009),
                                scaled so that a passage that everybody has first gets 1; equal scores share the mean of
                                their ranks
            agreement           as zscore_mean, each teacher weighing its mean correlation with the others' scores of this
                                query (negative ones count 0); all alike where nobody agrees, and alone
            feedback            the scores of the teacher whose ranking is best for this query, see `feedback.rewards`; the
                                mean of several that are equally good
        weights: float [T], >= 0, of the means; None: all alike. Only for WEIGHTED_COMBINATIONS. Those of absent
            teachers fall to the others.
        relevant: bool [..., C], gold passages, for `feedback`; None: it goes by the scores alone.

    Returns:
        float [..., C], of the type of `scores`.

    Raises:
        ValueError: an unknown `how`, weights that it does not take or that are not one a teacher, or fewer than two
            dimensions.
    """
    if scores.ndim < 2 or not np.issubdtype(scores.dtype, np.floating):
        raise ValueError(f"scores must be float [..., T, C], not {scores.dtype} {list(scores.shape)}")
    if how not in COMBINATIONS:
        raise ValueError(f"there is no combination {how!r}; it can be {', '.join(COMBINATIONS)}")
    values = scores.astype(np.float64)
    given = _checked_weights(weights, how, values.shape[-2])
    absent: NDArray[np.bool_] = np.isnan(values)
    if how == "mean" and len(given) and (given > 0).all() and not absent.any():
        # What training asks for at every query, without the dozen passes that absence needs.
        return np.asarray((values * given[:, None]).sum(axis=-2) / given.sum()).astype(scores.dtype)
    teachers = ~np.all(absent, axis=-1, keepdims=True)
    heard = teachers & (given > 0)[:, None]
    teachers = np.where(heard.any(axis=-2, keepdims=True), heard, teachers)
    complete = ~np.any(absent & teachers, axis=-2, keepdims=True) & np.any(teachers, axis=-2, keepdims=True)
    usable = teachers & complete
    if how == "max":
        combined = np.where(usable, values, -np.inf).max(axis=-2, initial=-np.inf)
    elif how == "min":
        combined = np.where(usable, values, np.inf).min(axis=-2, initial=np.inf)
    else:
        share = np.where(teachers, given[:, None], 0.0)
        if how in ("zscore_mean", "agreement"):
            values = _z_scores(values, usable)
        if how == "agreement":
            share = share * _agreement(values, usable)
        elif how == "minmax_mean":
            values = _min_max(values, usable)
        elif how == "rank_fusion":
            values = (RANK_CONSTANT + 1) / (RANK_CONSTANT + _ranks(values, usable))
        elif how == "feedback":
            share = _best(values, usable, relevant)
        total = share.sum(axis=-2, keepdims=True)
        # Where nobody weighs anything (agrees with another, say), all count alike.
        share = np.where(total > 0, share, teachers.astype(np.float64))
        total = np.maximum(share.sum(axis=-2), 1e-300)
        combined = (np.where(usable, values, 0.0) * share).sum(axis=-2) / total
    return np.where(complete[..., 0, :], combined, np.nan).astype(scores.dtype)


@dataclass(frozen=True)
class Combiner:
    """A combination of T teachers with its settings; see `combine`."""

    how: Combination = "mean"
    weights: tuple[float, ...] | None = None

    @property
    def needs_relevant(self) -> bool:
        """Whether gold passages change the result."""
        return self.how == "feedback"

    def __call__(self, scores: NDArray[Any], relevant: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """Return one score a candidate, as `combine` does."""
        return combine(scores, self.how, self.weights, relevant if self.needs_relevant else None)


def _checked_weights(weights: Sequence[float] | None, how: str, teachers: int) -> NDArray[np.float64]:
    if weights is None:
        return np.ones(teachers)
    if how not in WEIGHTED_COMBINATIONS:
        raise ValueError(f"the combination {how!r} takes no weights; {', '.join(WEIGHTED_COMBINATIONS)} do")
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (teachers,) or not np.all(np.isfinite(given)) or np.any(given < 0):
        raise ValueError(f"weights must be {teachers} finite numbers >= 0, one a teacher, not {list(weights)}")
    return given


def _z_scores(values: NDArray[np.float64], usable: NDArray[np.bool_]) -> NDArray[np.float64]:
    count = np.maximum(usable.sum(axis=-1, keepdims=True), 1)
    shifted = np.where(usable, values, 0.0)
    centred = np.where(usable, values - shifted.sum(axis=-1, keepdims=True) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=-1, keepdims=True) / count)
    # Equal scores leave rounding residue in `centred`; dividing by that residue would turn noise into preference.
    scale = np.abs(shifted).max(axis=-1, keepdims=True, initial=0.0)
    flat = deviation <= 1e-9 * np.maximum(scale, 1e-300)
    return np.where(flat, 0.0, centred / np.where(flat, 1.0, deviation))


def _min_max(values: NDArray[np.float64], usable: NDArray[np.bool_]) -> NDArray[np.float64]:
    low = np.where(usable, values, np.inf).min(axis=-1, keepdims=True, initial=np.inf)
    high = np.where(usable, values, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
    flat = ~(high > low)
    return np.where(usable & ~flat, (values - np.where(flat, 0.0, low)) / np.where(flat, 1.0, high - low), 0.0)


def _ranks(values: NDArray[np.float64], usable: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the rank of every usable score among its teacher's, 1 the highest; equal ones get the mean of theirs."""
    ranks = np.zeros(values.shape)
    for place in np.ndindex(*values.shape[:-1]):
        kept = np.flatnonzero(usable[place])
        _, group, counts = np.unique(-values[place][kept], return_inverse=True, return_counts=True)
        ranks[place][kept] = (np.cumsum(counts) - (counts - 1) / 2.0)[group]
    return ranks


def _agreement(z_scores: NDArray[np.float64], usable: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return [..., T, 1]: each teacher's mean correlation with the other present ones, negative ones counting 0."""
    count = np.maximum(usable.any(axis=-2).sum(axis=-1), 1)[..., None, None]
    kept = np.where(usable, z_scores, 0.0)
    correlation = kept @ np.swapaxes(kept, -1, -2) / count
    size = correlation.shape[-1]
    others = np.where(np.eye(size, dtype=bool), 0.0, np.maximum(correlation, 0.0)).sum(axis=-1, keepdims=True)
    number = np.maximum(usable.any(axis=-1, keepdims=True).sum(axis=-2, keepdims=True) - 1, 1)
    return np.asarray(others / number)


def _best(values: NDArray[np.float64], usable: NDArray[np.bool_], relevant: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """Return [..., T, 1]: 1 for the teachers of the highest reward, 0 for the others."""
    found = rewards(np.where(usable, values, np.nan), relevant)
    highest = np.where(np.isnan(found), -np.inf, found).max(axis=-1, keepdims=True, initial=-np.inf)
    return np.asarray(found >= highest, dtype=np.float64)[..., None]
