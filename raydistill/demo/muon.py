"""The optimizer of the demo's tiny models: Muon for the matrices inside the layers, AdamW for embeddings and vectors.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest semi-orthogonal matrix, found by five Newton-Schulz
steps. Tiny models learn to copy names in about half of the steps that AdamW alone needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of the odd polynomial that drives singular values towards 1


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return a matrix of the same shape [m, n] with the same singular vectors and singular values near 1."""
    first, third, fifth = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    current = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(steps):
        gram = current @ current.T
        current = first * current + (third * gram + fifth * gram @ gram) @ current
    return current.T if tall else current


class MuonWithAdamW:
    """Both optimizers under one `step`; gradients are cleared afterwards.

    Args:
        model: matrices whose name contains "embed" train with AdamW, as all vectors do.
        steps: length of the schedule: 30 steps of warm-up, constant, linear decay to 2 % over the last `decay_share`.
        matrix_rate, other_rate: peak learning rates of Muon and of AdamW.
    """

    def __init__(self, model: Any, steps: int, matrix_rate: float, other_rate: float, decay_share: float = 0.4) -> None:
        named = list(model.named_parameters())
        self._matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
        chosen = {id(weight) for weight in self._matrices}
        self._adamw = torch.optim.AdamW(
            [weight for _, weight in named if id(weight) not in chosen], lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        self._momenta = [torch.zeros_like(weight) for weight in self._matrices]
        self._all = [weight for _, weight in named]
        self._rates = (matrix_rate, other_rate)
        self._steps, self._decay, self._done = steps, decay_share * steps, 0

    @torch.no_grad()
    def step(self) -> None:
        """Clip, update every weight from its gradient, clear the gradients."""
        self._done += 1
        share = min(1.0, self._done / 30, max(0.02, (self._steps - self._done) / self._decay))
        torch.nn.utils.clip_grad_norm_(self._all, 1.0)
        for group in self._adamw.param_groups:
            group["lr"] = self._rates[1] * share
        self._adamw.step()
        for weight, momentum in zip(self._matrices, self._momenta, strict=True):
            if weight.grad is None:
                continue
            momentum.mul_(0.95).add_(weight.grad)
            update = orthogonalised(weight.grad.add(momentum, alpha=0.95))
            scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
            weight.add_(update, alpha=-self._rates[0] * share * scale)
        for weight in self._all:
            weight.grad = None
