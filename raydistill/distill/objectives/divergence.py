"""Distributions over a query's candidates: KL divergence, listwise cross-entropy, the teachers' entropy.

Candidates drawn with unequal probabilities stand for others. With W_j = exp(log_weight_j), the inverse probability that
candidate j is in the sample, both distributions are self-normalised:

    p_j = W_j exp(t_j / tau) / Zt,   Zt = sum_j W_j exp(t_j / tau)        (q and Zs likewise, of the student)
    KLD = sum_j p_j ((t_j / tau - log Zt) - (s_j / tau_s - log Zs))

What this estimates is the KLD over all the candidates that the sample was drawn from. Zt, Zs and the sums that p weighs,
before division by Zt, are unbiased for those over all candidates (Horvitz and Thompson, 1952). The quotient and the
logarithms are not: the KLD and its gradient q - p are consistent, with a bias that falls like 1 / K. Without weights
(all log_weight 0) the loss is the KLD between the distributions over the sample itself, as in DiSCo.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raydistill.config.objective import Kld, ListwiseCe
from raydistill.distill.objectives.scores import StepScores, batch_mean


@dataclass(frozen=True)
class _Distribution:
    """A softmax over the present places.

    Attributes:
        mass: [B, K]; probability that a drawn place stands for, weights included; sums to 1 where anything is present.
        log_probability: [B, K]; log-probability of the place's own passage, weights only in the normaliser.
    Both are 0 where absent.
    """

    mass: Tensor
    log_probability: Tensor


def _softmax(scores: Tensor, present: Tensor, tau: float, log_weight: Tensor) -> _Distribution:
    scaled = scores.masked_fill(~present, 0.0) / tau
    logits = (scaled + log_weight).masked_fill(~present, float("-inf"))
    # A row of -inf has no normaliser and a NaN gradient; any finite row does, and is masked below.
    logits = logits.masked_fill(~present.any(dim=1, keepdim=True), 0.0)
    normaliser = torch.logsumexp(logits, dim=1, keepdim=True)
    return _Distribution(
        mass=(logits - normaliser).exp().masked_fill(~present, 0.0),
        log_probability=(scaled - normaliser).masked_fill(~present, 0.0),
    )


def kld(scores: StepScores, term: Kld) -> Tensor:
    """KL divergence from the student's to the teachers' distribution; queries with two scored candidates count."""
    teacher = _softmax(scores.teacher, scores.present, term.tau, scores.log_weight)
    student = _softmax(scores.own, scores.present, term.student_tau or term.tau, scores.log_weight)
    divergence = (teacher.mass * (teacher.log_probability - student.log_probability)).sum(dim=1)
    return batch_mean(divergence, scores.present.sum(dim=1) >= 2)


def listwise_ce(scores: StepScores, term: ListwiseCe) -> Tensor:
    """Cross-entropy of the student's distribution under the teachers'; queries with two scored candidates count."""
    teacher = _softmax(scores.teacher, scores.present, term.tau, scores.log_weight)
    student = _softmax(scores.own, scores.present, term.student_tau or term.tau, scores.log_weight)
    return batch_mean(-(teacher.mass * student.log_probability).sum(dim=1), scores.present.sum(dim=1) >= 2)


def teacher_entropy(teacher: Tensor, present: Tensor, temperature: float = 1.0, log_weight: Tensor | None = None) -> Tensor:
    """Return the entropy in nats of the teachers' distribution over the sample, mean over queries with two candidates.

    A measure of how much there is to learn: near 0 the teachers' list is one passage, near log K it says nothing.

    Args:
        teacher: float32 [B, K]. present: bool [B, K]. temperature: tau > 0.
        log_weight: float32 [B, K]; logs of the inverse inclusion probabilities; None where all are drawn alike.
    """
    distribution = _softmax(teacher, present, temperature, torch.zeros_like(teacher) if log_weight is None else log_weight)
    entropy = -(distribution.mass * distribution.log_probability).sum(dim=1)
    return batch_mean(entropy, present.sum(dim=1) >= 2)
