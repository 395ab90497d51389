"""From scores to probabilities: Platt's scaling, fitted on labels. Pure arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STEPS = 100
_RIDGE = 1e-6


@dataclass(frozen=True)
class Calibration:
    """log-odds = slope * score + intercept."""

    slope: float
    intercept: float

    def log_odds(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the calibrated log-odds of scores, of any shape; NaN stays."""
        return self.slope * np.asarray(scores, dtype=np.float64) + self.intercept


def fit(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> Calibration:
    """Return the calibration that makes labels most likely, with Platt's targets (1999): (n+ + 1) / (n+ + 2) for positives
    and 1 / (n- + 2) for negatives, which keep it finite where scores separate them.

    Args:
        scores, labels: [N]; NaN scores are left out.

    Raises ValueError without a positive or without a negative.
    """
    known = ~np.isnan(scores)
    values, positive = np.asarray(scores, dtype=np.float64)[known], labels[known]
    good, bad = int(positive.sum()), int((~positive).sum())
    if not good or not bad:
        raise ValueError(f"a calibration needs relevant and other passages, got {good} and {bad}")
    target = np.where(positive, (good + 1.0) / (good + 2.0), 1.0 / (bad + 2.0))
    # Fitted on standardised scores, so that Newton's steps are well scaled whatever the scores are.
    centre, spread = float(values.mean()), float(values.std()) or 1.0
    rows = np.stack([(values - centre) / spread, np.ones_like(values)], axis=1)
    weights = np.zeros(2)
    for _ in range(_STEPS):
        expected = 0.5 * (1.0 + np.tanh(0.5 * (rows @ weights)))
        curvature = rows.T @ (rows * (expected * (1.0 - expected))[:, None]) + _RIDGE * len(values) * np.eye(2)
        step = np.linalg.solve(curvature, rows.T @ (target - expected) - _RIDGE * len(values) * weights)
        step *= min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-300))
        weights += step
        if float(np.abs(step).max()) < 1e-10:
            break
    slope = float(weights[0]) / spread
    return Calibration(slope, float(weights[1]) - slope * centre)


def log_loss(log_odds: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Return the mean negative log-likelihood of labels [N] in nats, NaN scores left out."""
    known = ~np.isnan(log_odds)
    signed = np.where(labels[known], 1.0, -1.0) * np.asarray(log_odds, dtype=np.float64)[known]
    return float(np.logaddexp(0.0, -signed).mean())
