"""Sparsity during training: which weight each penalty has at a step, the statistics behind it, and signs of collapse.

One object lives beside the optimizer on every worker. It sees the query vectors of the whole global batch, so all
workers hold the same state without talking; `state` goes into the checkpoint. The penalties' formulas are in
`regularisers`, the law by which lambda follows a target in `control`.

The statistics are those of the training vectors, dropout included and from before each step's update. On unseen turns and
without dropout the student has more terms: `validated` tells the controller how many more. Without validation a target
holds for the training vectors only: read the final figure from the evaluation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raydistill.config import RegularisationConfig
from raydistill.config.regularisation import Penalty
from raydistill.distill.collapse import CollapseWatch
from raydistill.distill.control import Controller
from raydistill.distill.regularisers import penalty_value, ramp, shared_terms, term_counts


class Sparsity:
    """The regularisation of one training run, at its current optimizer step.

    Args:
        config: penalties, target, control.
        document_share: float32 [V], share of the index's passages that hold each term; None where no fixed passages
            exist, and then no FLOPS of queries with passages.
        steps: optimizer steps of the whole training.
        field: configuration field of `config`, and `texts` what it regularises, for messages.
    """

    def __init__(
        self,
        config: RegularisationConfig,
        document_share: Tensor | None,
        steps: int,
        field: str = "train.regularisation",
        texts: str = "queries",
    ) -> None:
        if document_share is None and config.target is not None and config.target.measure == "flops":
            raise ValueError(f"the target {config.target} is measured against fixed passages; without them use one on l0")
        self._config = config
        self._document_share = document_share
        self._ramp_steps = round(config.ramp_share * steps)
        self._buckets = config.controller.depth_buckets if config.per_depth else 1
        self._controller: Controller | None = None
        if config.target is not None and config.controlled is not None:
            response = config.controlled.RESPONSE
            self._controller = Controller(
                config.controller, config.target.bound, self._buckets, steps, config.start_lambda, response
            )
        self._step = 0
        self._collapse = CollapseWatch(config, field, texts)

    def penalty(self, queries: Tensor, depths: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted sum of all penalties at the current step, and values to log.

        Args:
            queries: float [B, V], the student's vectors of the global batch; gradients flow into them.
            depths: int64 [B], turn depth of each query, from 1.

        Returns:
            A scalar (0 without gradient where no penalty is on), and l0, flops (of the batch), and for each penalty
            NAME_penalty, its part of the loss, and NAME_lambda, its mean weight over the batch.
        """
        with torch.no_grad():
            counts = term_counts(queries)
            values = {"l0": float(counts.double().mean())}
            if self._document_share is not None:
                values["flops"] = float(self._shared(queries, self._document_share).double().mean())
        guard = self._config.terms.guard
        judged = torch.ones_like(counts, dtype=queries.dtype) if guard is None else (counts > guard.floor).to(queries.dtype)
        weights: list[tuple[Penalty, Tensor]] = []
        for weight, penalty in self._config.fixed:
            share = ramp(self._step, self._ramp_steps) if penalty.SPARSIFIES else 1.0
            values[f"{penalty.NAME}_lambda"] = weight * share
            weights.append((penalty, weight * share * (judged if penalty.SPARSIFIES else torch.ones_like(judged))))
        controlled = self._config.controlled
        if controlled is not None and self._controller is not None:
            lambdas = torch.tensor(self._controller.lambdas, dtype=queries.dtype, device=queries.device)
            of_queries = lambdas[self._bucket(depths)]
            values[f"{controlled.NAME}_lambda"] = float(of_queries.double().mean())
            if any(self._controller.lambdas):
                weights.append((controlled, of_queries * judged))
            else:
                values[f"{controlled.NAME}_penalty"] = 0.0
        total = queries.new_zeros(())
        if weights:
            magnitudes = queries.abs()
            for penalty, of_penalty in weights:
                value = penalty_value(penalty, queries, magnitudes, counts, of_penalty)
                values[f"{penalty.NAME}_penalty"] = float(value.detach())
                total = total + value
        return total, values

    def weigh(self, queries: Tensor, loss_gradient: Tensor, penalty_gradient: Tensor | None) -> dict[str, float]:
        """Compare the gradient of the distillation loss with that of the penalties at this step; return values to log.

        While a controlled lambda looks for its start, the comparison is with the penalty at lambda = 1: lambda starts
        where |lambda dP/dq| = start_pull |dL/dq|, Euclidean norms over non-zero terms. Adam's steps depend on the relation
        of the two only, so the start is free of the scales of scores, objective and vocabulary.

        Args:
            queries: float [B, V], detached. loss_gradient: float [B, V], dL/dq without penalties.
            penalty_gradient: float [B, V], of the sum of penalties; None where no penalty is on.

        Returns:
            penalty_pull: norm of the penalties' gradient in parts of the loss's; nothing without a target.
        """
        controlled = self._config.controlled
        if controlled is None or self._controller is None:
            return {}
        loss_norm = float((loss_gradient * (queries != 0)).norm())
        pull = 0.0
        if penalty_gradient is not None and loss_norm > 0:
            pull = float(penalty_gradient.norm()) / loss_norm
        self._controller.pulled(pull)
        if self._controller.wants_suggestion:
            unit_norm = float(_unit_gradient(controlled, queries).norm())
            if loss_norm > 0 and unit_norm > 0:
                self._controller.suggest(self._config.controller.start_pull * loss_norm / unit_norm)
        return {"penalty_pull": pull}

    def advance(self, queries: Tensor, depths: Tensor) -> dict[str, float]:
        """Count an optimizer step and move lambda; return values to log.

        Args:
            queries: float [B, V], detached; the vectors that the step was computed from. depths: int64 [B], from 1.

        Returns:
            With a target: sparsity_statistic (moving average) and sparsity_wanted, in the target's unit; sparsity_gap, by
            what factor held-out queries cost more; and with per_depth lambda_depth_D, the lambda of each depth from now on.
        """
        with torch.no_grad():
            counts = term_counts(queries).tolist()
            costs = [float(count) for count in counts]
            if self._document_share is not None and self._config.target and self._config.target.measure == "flops":
                costs = self._shared(queries, self._document_share).tolist()
        self._collapse.add(counts, costs)
        self._step += 1
        if self._controller is None:
            return {}
        self._controller.advance(costs, self._bucket(depths).tolist())
        controller = self._controller
        values = {"sparsity_statistic": controller.statistic, "sparsity_wanted": controller.wanted}
        values["sparsity_gap"] = controller.gap
        if self._config.per_depth:
            values |= {f"lambda_depth_{depth}": value for depth, value in enumerate(self._controller.lambdas, start=1)}
        return values

    def validated(self, l0: float, flops: float) -> None:
        """Take the mean terms and FLOPS of held-out queries, encoded without dropout by the student as it is now."""
        if self._controller is not None and self._config.target is not None:
            self._controller.observed({"l0": l0, "flops": flops}[self._config.target.measure])

    def advice(self) -> str | None:
        """Return a sentence when sparsity collapses, with numbers and what to change; None while all is well."""
        lambdas = self._controller.lambdas if self._controller else [weight for weight, _ in self._config.fixed]
        return self._collapse.advice(self._step, penalised=any(lambdas))

    def state(self) -> dict[str, Any]:
        """Return all that changes during training, as JSON-able numbers."""
        return {
            "step": self._step,
            "collapse": self._collapse.state(),
            "controller": None if self._controller is None else self._controller.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`, to the last bit."""
        self._step = int(state["step"])
        self._collapse.load_state(state["collapse"])
        if self._controller is not None:
            self._controller.load_state(state["controller"])

    def _bucket(self, depths: Tensor) -> Tensor:
        return (depths - 1).clamp(0, self._buckets - 1)

    def _shared(self, queries: Tensor, document_share: Tensor) -> Tensor:
        return shared_terms(queries, document_share.to(queries.device))


def _unit_gradient(penalty: Penalty, queries: Tensor) -> Tensor:
    """Gradient of a penalty with weight 1, float [B, V]."""
    leaf = queries.detach().requires_grad_(True)
    ones = torch.ones(len(leaf), dtype=leaf.dtype, device=leaf.device)
    value = penalty_value(penalty, leaf, leaf.abs(), term_counts(leaf), ones)
    return torch.autograd.grad(value, leaf)[0]
