"""Signs that sparsity collapses: queries that lose their terms until no gradient can bring one back.

A collapse, on averages over about five steps and against the first three steps of the training:
- most queries have as many terms as the guard's floor or fewer (three without a guard), which they had not at the start,
  and L0 has halved; unless the target asks for that few; or
- the watched cost (the target's measure, else L0) is under a quarter of its start, or of the target where that is lower;
  under a tenth of its start where fixed weights are meant to make queries sparser.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from raydistill.config import RegularisationConfig
from raydistill.distill.control import MovingMean

_START_STEPS = 3
_WATCH_STEPS = 5.0
_FEW_TERMS = 3
_MOST_STARVED = 0.5
_COLLAPSED_SHARE = 0.25
_COLLAPSED_SHARE_UNDER_FIXED_WEIGHTS = 0.1


class CollapseWatch:
    """Averages of what texts have left, and the verdict on them.

    Args:
        config: the regularisation that is watched.
        field: its configuration field, and `texts` what it regularises, for the sentence.
    """

    def __init__(self, config: RegularisationConfig, field: str = "train.regularisation", texts: str = "queries") -> None:
        self._field, self._texts = field, texts
        self._target = config.target
        self._guard = config.terms.guard
        self._few = self._guard.floor if self._guard else _FEW_TERMS
        self._fixed = any(penalty.SPARSIFIES for _, penalty in config.fixed)
        self._l0, self._cost, self._starved = (MovingMean(_WATCH_STEPS) for _ in range(3))
        self._start_l0, self._start_cost, self._start_starved = (MovingMean(inf) for _ in range(3))
        self._steps = 0

    def add(self, counts: Sequence[int], costs: Sequence[float]) -> None:
        """Take one step's non-zero terms of each query and the costs that the target bounds (L0 without a target)."""
        starved = sum(count <= self._few for count in counts)
        for mean, total in zip(self._recent(), (sum(counts), sum(costs), starved), strict=True):
            mean.add(total, len(counts))
        if self._steps < _START_STEPS:
            for mean, total in zip(self._first(), (sum(counts), sum(costs), starved), strict=True):
                mean.add(total, len(counts))
        self._steps += 1

    def advice(self, step: int, penalised: bool) -> str | None:
        """Return a sentence on a collapse, None while all is well.

        Args:
            step: optimizer steps done, for the sentence.
            penalised: whether any penalty is on now; if not, the distillation loss alone removes the terms.
        """
        reason = (self._starvation() or self._fall()) if self._steps > _START_STEPS else None
        return None if reason is None else f"sparsity collapses at step {step}: {reason}; {self._remedy(penalised)}"

    def _starvation(self) -> str | None:
        asked = self._target is not None and self._target.measure == "l0" and self._target.bound <= self._few
        halved = self._l0.mean < 0.5 * self._start_l0.mean
        if asked or not halved or self._starved.mean <= _MOST_STARVED or self._start_starved.mean > _MOST_STARVED:
            return None
        return (
            f"{self._starved.mean:.0%} of the {self._texts} have {self._few} non-zero terms or fewer, "
            f"and {self._l0.mean:.1f} is their mean, {self._start_l0.mean:.1f} at the start"
        )

    def _fall(self) -> str | None:
        start, now = self._start_cost.mean, self._cost.mean
        unit = (
            "expected terms shared with a passage" if self._target and self._target.measure == "flops" else "non-zero terms"
        )
        if self._target is not None:
            limit, against = _COLLAPSED_SHARE * min(start, self._target.bound), f" and {self._target} is asked for"
        else:
            limit = start * (_COLLAPSED_SHARE_UNDER_FIXED_WEIGHTS if self._fixed else _COLLAPSED_SHARE)
            against = ""
        return f"{self._texts} have {now:.3g} {unit}, {start:.3g} at the start{against}" if now < limit else None

    def _remedy(self, penalised: bool) -> str:
        remedies = []
        if penalised and self._target is not None:
            remedies.append(f"raise {self._field}.target, or lower {self._field}.controller.start_pull")
        elif penalised and self._fixed:
            remedies.append(f"lower the weights in {self._field}.terms, or name a target instead")
        else:
            remedies.append(
                f"no penalty does this: raise student_tau in {self._training}.objective (scores too large for it shrink all)"
            )
        remedies.append(f"lower {self._training}.learning_rate or {self._training}.head_learning_rate")
        if self._guard is None:
            remedies.append(f"add 0.1*guard to {self._field}.terms")
        return "; ".join(remedies)

    @property
    def _training(self) -> str:
        return self._field.rpartition(".")[0]

    def state(self) -> dict[str, Any]:
        """Return all that changes, as JSON-able numbers."""
        return {"steps": self._steps, "means": [[mean.total, mean.count] for mean in self._recent() + self._first()]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._steps = int(state["steps"])
        for mean, (total, count) in zip(self._recent() + self._first(), state["means"], strict=True):
            mean.total, mean.count = total, count

    def _recent(self) -> tuple[MovingMean, ...]:
        return self._l0, self._cost, self._starved

    def _first(self) -> tuple[MovingMean, ...]:
        return self._start_l0, self._start_cost, self._start_starved
