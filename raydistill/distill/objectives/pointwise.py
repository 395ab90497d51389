"""Each candidate alone against a soft label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from raydistill.config.objective import Bce
from raydistill.distill.objectives.scores import StepScores, batch_mean, masked_mean


def bce(scores: StepScores, term: Bce) -> Tensor:
    """Binary cross-entropy against calibrated labels, mean over a query's candidates; queries with a candidate count."""
    labels = torch.sigmoid(scores.teacher / term.tau + term.shift)
    student_shift = term.shift if term.student_shift is None else term.student_shift
    logits = scores.own.masked_fill(~scores.present, 0.0) / (term.student_tau or term.tau) + student_shift
    losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return batch_mean(masked_mean(losses, scores.present, dim=1), scores.present.any(dim=1))
