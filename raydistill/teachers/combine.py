"""How the scores of several teachers for a passage become one. Pure arrays; where the scores come from lives in index."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Combination = Literal["mean", "max", "min", "zscore_mean"]


def combine(scores: NDArray[Any], how: Combination) -> NDArray[Any]:
    """Return one score a candidate from those of T teachers.

    NaN marks an absent score. What absence means is the same for every `how`:

    - A teacher that is absent for all candidates of a query (it failed to rewrite it) is left out of that query.
    - A candidate that lacks the score of a teacher that is otherwise present is absent in the result (NaN): an average over
      whichever teachers happened to score a passage would not be comparable between passages. It also stays out of the
      statistics of `zscore_mean`. With exact scores for the union of candidates this does not occur.
    - Without any teacher, the whole result is NaN; the caller leaves the query out.

    Args:
        scores: float [..., T, C]; leading dimensions are queries.
        how: "mean", "max", "min" over teachers, or "zscore_mean": each teacher's scores of the query are shifted and
            scaled to mean 0 and standard deviation 1 (population) first, then averaged; a teacher that gives every
            candidate the same score says nothing and counts 0.

    Returns:
        float [..., C], of the type of `scores`.

    Raises:
        ValueError: an unknown `how`, or fewer than two dimensions.
    """
    if scores.ndim < 2 or not np.issubdtype(scores.dtype, np.floating):
        raise ValueError(f"scores must be float [..., T, C], not {scores.dtype} {list(scores.shape)}")
    values = scores.astype(np.float64)
    absent: NDArray[np.bool_] = np.isnan(values)
    teachers = ~np.all(absent, axis=-1, keepdims=True)
    complete = ~np.any(absent & teachers, axis=-2, keepdims=True) & np.any(teachers, axis=-2, keepdims=True)
    usable = teachers & complete
    if how == "zscore_mean":
        values = _z_scores(values, usable)
    if how in ("mean", "zscore_mean"):
        count = np.maximum(teachers.sum(axis=-2), 1)
        combined = np.where(usable, values, 0.0).sum(axis=-2) / count
    elif how == "max":
        combined = np.where(usable, values, -np.inf).max(axis=-2, initial=-np.inf)
    elif how == "min":
        combined = np.where(usable, values, np.inf).min(axis=-2, initial=np.inf)
    else:
        raise ValueError(f"there is no combination {how!r}; it can be mean, max, min or zscore_mean")
    return np.where(complete[..., 0, :], combined, np.nan).astype(scores.dtype)


def _z_scores(values: NDArray[np.float64], usable: NDArray[np.bool_]) -> NDArray[np.float64]:
    count = np.maximum(usable.sum(axis=-1, keepdims=True), 1)
    shifted = np.where(usable, values, 0.0)
    centred = np.where(usable, values - shifted.sum(axis=-1, keepdims=True) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=-1, keepdims=True) / count)
    # Equal scores leave rounding residue in `centred`; dividing by that residue would turn noise into preference.
    scale = np.abs(shifted).max(axis=-1, keepdims=True, initial=0.0)
    flat = deviation <= 1e-9 * np.maximum(scale, 1e-300)
    return np.where(flat, 0.0, centred / np.where(flat, 1.0, deviation))
