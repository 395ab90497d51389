"""The controller that holds a sparsity target: lambda of one penalty, as numbers in and numbers out.

Pure arithmetic on Python floats, so that all workers agree and a checkpoint continues to the last bit. What a query
costs, and the penalty itself, are `sparsity`'s and `regularisers`' affair.

Control is in log space and incremental. With s the statistic (a moving average), w what is wanted of it at this step
and e = log(s / w), a step changes

    log lambda by gain (e - e_before) + gain e / (integral_share * steps),

bounded in rate (`most_change`). Lambda does not grow while the penalties' gradient is more than `most_pull` times the
loss's, where more of it would only wind up. Below 1/300 of its start it counts as 0: when the statistic lies under the
target the penalty goes off, for the target is an upper bound. When the statistic comes to lie above it, lambda begins at
its start, as it does after the warm-up: a student that grows past the target late leaves no time to climb from nothing.

What is wanted goes smoothly from the statistic at the end of the warm-up to the target,
log w = log target + max(0, log(s_start / target)) (1 - u)^2 with u = 0..1 from there to `reach_share` of the steps. The
slope ends at 0, where lambda has to be the one that holds the target, not the larger one that moves the statistic; the
remaining steps, in which the learning rate falls to 0, can correct little. The bound is aimed at from 2 % below.

Unseen queries: a student that drops out units sees fewer terms than one that does not, and it is sparser on turns that it
trained on than on others. Each validation says by how much, as g = log(cost of held-out queries / s); the target is then
w exp(-g), so that what holds it is the student as it will be used. Without validation g is 0.

Depths: every bucket d has a lambda of its own. To the common change comes

    gain (r_d - r_d before) + gain r_d / (3 integral_share * steps),

r_d being the log of the cost of the depth's queries in parts of the average cost of the depths whose penalty is on,
from a moving average three times as long: a batch holds few queries of a depth, and depths share most of the student.
A depth whose penalty is off waits until its own cost is above what is wanted (and then goes without the 3). A depth also
borrows four queries' worth of the average of the other depths, half as much of each for every turn of distance; so a
depth that is seen seldom goes with its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from raydistill.config import ControllerConfig

CONTROL_VERSION = 2
"""Counts what changes the students that trainings with a target give: part of their fingerprints."""

_LOWEST = -math.log(300.0)
_FEWEST_WARMUP_STEPS = 3
_SMOOTHING_STEPS = (3.0, 200.0)
_FEWEST_INTEGRAL_STEPS = 4.0
_SLOWER_FOR_DEPTHS = 3.0
_MORE_PATIENT_FOR_DEPTHS = 3.0
_BORROWED_QUERIES = 4.0
_NEIGHBOUR_SHARE = 0.5
_LARGEST_ERROR = 2.0
_AIM = 0.98
_LARGEST_GAP = math.log(3.0)
_TINY = 1e-12


class MovingMean:
    """Exponential moving average of values that come in unequal numbers a step; exact from the first value on."""

    def __init__(self, steps: float) -> None:
        self._keep = math.exp(-1.0 / steps)
        self.total = 0.0
        self.count = 0.0

    def add(self, total: float, count: float) -> None:
        """Take one step's sum of values and their number."""
        self.total = self._keep * self.total + total
        self.count = self._keep * self.count + count

    @property
    def mean(self) -> float:
        """The average; 0 before the first value."""
        return self.total / self.count if self.count > 0 else 0.0


class Controller:
    """Lambda of every depth bucket, from the costs of the queries of each step.

    Args:
        config: durations and gains.
        bound: the target's upper bound on the mean cost of a query.
        buckets: number of depth buckets; 1 for one lambda.
        steps: optimizer steps of the whole training.
        start_lambda: where lambda starts; None to have it given by `suggest` during the warm-up.
        response: the penalty's `RESPONSE`; the gain is divided by it.
    """

    def __init__(
        self,
        config: ControllerConfig,
        bound: float,
        buckets: int,
        steps: int,
        start_lambda: float | None = None,
        response: float = 1.0,
    ) -> None:
        self._config = config
        self._bound = _AIM * bound
        self._warmup = max(_FEWEST_WARMUP_STEPS, round(config.warmup_share * steps))
        self._reach = max(self._warmup + 1, round(config.reach_share * steps))
        self._integral_steps = max(_FEWEST_INTEGRAL_STEPS, config.integral_share * steps)
        smoothing = min(max(config.smoothing_share * steps, _SMOOTHING_STEPS[0]), _SMOOTHING_STEPS[1])
        self._gain = config.gain / response
        self._given = start_lambda
        self.step = 0
        self._cost = MovingMean(smoothing)
        self._relative = [MovingMean(_SLOWER_FOR_DEPTHS * smoothing) for _ in range(buckets)]
        self._suggestions = MovingMean(math.inf)
        self._pull = MovingMean(_SMOOTHING_STEPS[0])
        self._start: float | None = None
        self._levels = [_LOWEST] * buckets
        self._error = 0.0
        self._differences = [0.0] * buckets
        self._gap: float | None = None

    @property
    def warming_up(self) -> bool:
        """Whether lambda has not started yet."""
        return self._start is None

    @property
    def wants_suggestion(self) -> bool:
        """Whether `suggest` still has an effect: in the warm-up, and after it until as many batches as it has steps had an
        opinion (a penalty that spares the first terms has no gradient for queries that are shorter)."""
        return self._given is None and (self.warming_up or self._suggestions.count < self._warmup)

    @property
    def statistic(self) -> float:
        """Moving average of the queries' cost."""
        return self._cost.mean

    @property
    def start(self) -> float | None:
        """The statistic at the end of the warm-up; None before."""
        return self._start

    @property
    def wanted(self) -> float:
        """What is wanted of the statistic at this step."""
        bound = self._bound / self.gap
        if self._start is None:
            return max(self.statistic, bound)
        left = 1.0 - min(1.0, (self.step - self._warmup) / (self._reach - self._warmup))
        return bound * math.exp(max(0.0, math.log(max(self._start, _TINY) / bound)) * left * left)

    @property
    def gap(self) -> float:
        """Cost of held-out queries in parts of the statistic, as the validations saw it; 1 before the first."""
        return math.exp(self._gap or 0.0)

    @property
    def lambdas(self) -> list[float]:
        """Lambda of each bucket; 0 where the penalty is off."""
        if self._start is None:
            return [0.0] * len(self._levels)
        return [self._start_lambda * math.exp(level) if level > _LOWEST else 0.0 for level in self._levels]

    @property
    def _start_lambda(self) -> float:
        if self._given is not None:
            return self._given
        # To 1 %: sums of gradients on a GPU may differ in their last bits between workers, whose lambdas must not.
        return math.exp(round(self._suggestions.mean, 2)) if self._suggestions.count > 0 else 0.0

    def suggest(self, start_lambda: float) -> None:
        """Take a batch's opinion on the starting lambda (> 0); their geometric mean counts."""
        self._suggestions.add(math.log(start_lambda), 1.0)

    def pulled(self, pull: float) -> None:
        """Take the size of this step's penalty gradient, in parts of the distillation loss's."""
        self._pull.add(pull, 1.0)

    def observed(self, cost: float) -> None:
        """Take the mean cost of held-out queries without dropout; a validation counts half as much as the next one."""
        if self.warming_up or cost <= 0.0 or self.statistic <= 0.0:
            return
        gap = min(max(math.log(cost / self.statistic), -_LARGEST_GAP), _LARGEST_GAP)
        self._gap = gap if self._gap is None else 0.5 * (self._gap + gap)

    def advance(self, costs: Sequence[float], buckets: Sequence[int]) -> None:
        """Count an optimizer step, whose queries had these costs and were in these depth buckets (0-based)."""
        self._cost.add(math.fsum(costs), len(costs))
        self.step += 1
        average = max(self.statistic, _TINY)
        for bucket, relative in enumerate(self._relative):
            own = [cost / average for cost, of in zip(costs, buckets, strict=True) if of == bucket]
            relative.add(math.fsum(own), len(own))
        if self.step < self._warmup:
            return
        relative_levels = self._relative_levels()
        if self._start is None:
            self._start = self.statistic
            # What counts at first is which side of the target a depth is on.
            self._levels = [
                0.0 if average * math.exp(level) > self._bound / self.gap else _LOWEST for level in relative_levels
            ]
            self._error, self._differences = self._errors(relative_levels)
        else:
            error, differences = self._errors(relative_levels)
            self._move(error, differences)
            self._error, self._differences = error, differences

    def _move(self, error: float, differences: Sequence[float]) -> None:
        gain, most = self._gain, self._config.most_change
        for bucket, difference in enumerate(differences):
            off = self._levels[bucket] <= _LOWEST
            if off and (error + difference <= 0 or self._pull.mean > self._config.most_pull):
                continue
            if off:
                self._levels[bucket] = 0.0
            patience = 1.0 if off else _MORE_PATIENT_FOR_DEPTHS
            change = gain * (error - self._error + error / self._integral_steps)
            change += gain * (difference - self._differences[bucket] + difference / (patience * self._integral_steps))
            if self._pull.mean > self._config.most_pull:
                change = min(change, 0.0)
            self._levels[bucket] = max(self._levels[bucket] + min(max(change, -most), most), _LOWEST)

    def _errors(self, relative_levels: Sequence[float]) -> tuple[float, list[float]]:
        """The common error, of the depths whose penalty is on, and each depth's difference from it."""
        error = math.log(max(self.statistic, _TINY) / self.wanted)
        error = min(max(error, -_LARGEST_ERROR), _LARGEST_ERROR)
        on = [bucket for bucket, level in enumerate(self._levels) if level > _LOWEST]
        weight = math.fsum(self._relative[bucket].count for bucket in on)
        shift = 0.0
        if weight > 0:
            shift = math.fsum(self._relative[bucket].count * relative_levels[bucket] for bucket in on) / weight
        return error + shift, [level - shift for level in relative_levels]

    def _relative_levels(self) -> list[float]:
        """log of each depth's relative cost, shrunk towards that of the depths around it."""
        if len(self._relative) == 1:
            return [0.0]
        levels = []
        for bucket, own in enumerate(self._relative):
            total = count = 0.0
            for other, neighbour in enumerate(self._relative):
                if other != bucket:
                    nearness = _NEIGHBOUR_SHARE ** abs(other - bucket)
                    total += nearness * neighbour.total
                    count += nearness * neighbour.count
            around = total / count if count > 0 else 1.0
            level = (own.total + _BORROWED_QUERIES * around) / (own.count + _BORROWED_QUERIES)
            levels.append(math.log(max(level, _TINY)))
        return levels

    def state(self) -> dict[str, Any]:
        """Return all that changes, as JSON-able numbers."""
        return {
            "step": self.step,
            "cost": _pair(self._cost),
            "relative": [_pair(mean) for mean in self._relative],
            "suggestions": _pair(self._suggestions),
            "pull": _pair(self._pull),
            "start": self._start,
            "levels": list(self._levels),
            "error": self._error,
            "differences": list(self._differences),
            "gap": self._gap,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.step = int(state["step"])
        for mean, pair in zip(
            [self._cost, self._suggestions, self._pull, *self._relative],
            [state["cost"], state["suggestions"], state["pull"], *state["relative"]],
            strict=True,
        ):
            mean.total, mean.count = pair
        self._start = state["start"]
        self._levels = list(state["levels"])
        self._error = state["error"]
        self._differences = list(state["differences"])
        self._gap = state.get("gap")  # checkpoints of earlier versions have none


def _pair(mean: MovingMean) -> list[float]:
    return [mean.total, mean.count]
