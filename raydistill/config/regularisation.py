"""What keeps the student's queries sparse: penalty terms with fixed weights, or a target that a controller holds.

The formulas of the penalties are in `raydistill.distill.regularisers`, the controller in `raydistill.distill.sparsity`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, InstanceOf, PlainSerializer, PositiveFloat, model_validator

from raydistill.config.expressions import Value, format_sum, number, parse_sum
from raydistill.config.fields import Fraction, Section

Measure = Literal["flops", "l0"]


@dataclass(frozen=True)
class Penalty(Value):
    """A term of the regularisation; its weight stands before it in the sum."""

    SPARSIFIES: ClassVar[bool] = True
    """Whether a larger weight makes queries sparser; such a term can be put under control."""
    RESPONSE: ClassVar[float] = 1.0
    """How strongly sparsity responds to a change of log weight, in parts of the response to flops."""


@dataclass(frozen=True)
class FlopsPenalty(Penalty):
    """FLOPS(Q) = sum_v (mean_b |q_bv|)^2 (Paria et al., arXiv 2004.05665): terms that many queries share cost most."""

    NAME: ClassVar[str] = "flops"


@dataclass(frozen=True)
class L1Penalty(Penalty):
    """L1(Q) = mean_b sum_v |q_bv|: every unit of weight costs the same."""

    NAME: ClassVar[str] = "l1"
    # Measured: FLOPS weakens as queries thin out and so steadies itself; L1 pulls with the same force to the end.
    RESPONSE: ClassVar[float] = 2.0


@dataclass(frozen=True)
class L0FlopsPenalty(Penalty):
    """FLOPS(Q) of the queries with more than `terms` non-zero terms; the others count as empty (arXiv 2504.14839)."""

    NAME: ClassVar[str] = "l0flops"

    terms: int = 30

    def check(self) -> None:
        if self.terms < 1:
            raise ValueError(f"l0flops.terms is {self.terms}; it must be >= 1 (to penalise every query write flops)")


@dataclass(frozen=True)
class GuardPenalty(Penalty):
    """Against collapse: a query with at most `floor` non-zero terms is exempt from all other terms of the sum, and the
    `floor` strongest terms of every query are held at a weight of `least` or more (by a hinge: no pull above)."""

    NAME: ClassVar[str] = "guard"
    SPARSIFIES: ClassVar[bool] = False

    floor: int = 6
    least: float = 0.3

    def check(self) -> None:
        if self.floor < 1:
            raise ValueError(f"guard.floor is {self.floor}; it must be >= 1 terms (or leave the guard out)")
        if self.least <= 0:
            raise ValueError(f"guard.least is {number(self.least)}; it must be > 0, e.g. 0.3")


PENALTIES: dict[str, type[Penalty]] = {kind.NAME: kind for kind in (FlopsPenalty, L1Penalty, L0FlopsPenalty, GuardPenalty)}
_NO_TERMS = ("", "none")
_OF_DOCUMENTS = re.compile(r"\b((?:flops|l1|l0flops|l0)_d(?:oc(?:ument)?s?)?|d(?:oc(?:ument)?s?)?_(?:flops|l1|l0flops))\b")


@dataclass(frozen=True)
class PenaltySum:
    """A weighted sum of penalties; `none` as text when it is empty. Each kind occurs at most once."""

    terms: tuple[tuple[float, Penalty], ...] = ()

    def __post_init__(self) -> None:
        names = [penalty.NAME for _, penalty in self.terms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands twice in {self}; add the weights up in one term")

    def __str__(self) -> str:
        return format_sum(self.terms) if self.terms else "none"

    @staticmethod
    def parse(text: str) -> PenaltySum:
        """Return the sum that a text such as `0.002*flops + 0.1*guard(floor=8)` describes; ValueError with a sentence."""
        if text.strip().lower() in _NO_TERMS:
            return PenaltySum()
        documents = _OF_DOCUMENTS.search(text)
        if documents:
            raise ValueError(
                f"{documents.group(1)!r} penalises document vectors, but documents are frozen: it has no gradient and "
                "changes nothing; leave it out (flops, l1 and l0flops are of the queries)"
            )
        return PenaltySum(parse_sum(text, PENALTIES))

    @property
    def guard(self) -> GuardPenalty | None:
        """The guard against collapse, where there is one."""
        return next((penalty for _, penalty in self.terms if isinstance(penalty, GuardPenalty)), None)


TOLERANCE = 0.05
"""By what share of its bound a target may be exceeded and still counts as held."""


@dataclass(frozen=True)
class SparsityTarget:
    """An upper bound that training reaches by itself, `flops<=1.8` or `l0<=25` as text.

    flops: expected number of non-zero terms that a query and a passage share, sum_v p_q(v) p_d(v).
    l0: mean number of non-zero terms a query.
    """

    measure: Measure
    bound: float

    def __post_init__(self) -> None:
        if not 0 < self.bound < float("inf"):
            raise ValueError(f"the target {self} must be a finite number > 0")
        if self.measure == "l0" and self.bound < 1:
            raise ValueError(f"the target {self} leaves queries without a term; the bound must be at least 1")

    def excess(self, cost: float) -> float:
        """Return by what share a mean cost is over the bound; 0 while it is within the 5 % that control leaves."""
        over = cost / self.bound - 1.0
        return over if over > TOLERANCE else 0.0

    def __str__(self) -> str:
        return f"{self.measure}<={number(self.bound)}"

    @staticmethod
    def parse(text: str) -> SparsityTarget:
        """Return the target that the text describes; ValueError with a sentence."""
        found = re.fullmatch(r"\s*([A-Za-z0-9_]+)\s*(<=|<|=|==|>=|>)\s*(\S+)\s*", text)
        if not found or found.group(1).lower() not in get_args(Measure):
            raise ValueError(f"the target {text!r} is not of the form flops<=1.8 or l0<=25")
        measure, sign, bound = found.groups()
        if sign != "<=":
            raise ValueError(f"the target {text!r} is an upper bound: write {measure.lower()}<={bound}")
        try:
            value = float(bound)
        except ValueError:
            raise ValueError(f"the bound of the target {text!r} is {bound!r}, not a number") from None
        return SparsityTarget("flops" if measure.lower() == "flops" else "l0", value)


def _penalties(value: object) -> object:
    if isinstance(value, (str, PenaltySum)):
        return PenaltySum.parse(value) if isinstance(value, str) else value
    raise ValueError("must be text, such as 0.002*flops + 0.1*guard(floor=8), or none")


def _target(value: object) -> object:
    if value is None or isinstance(value, (str, SparsityTarget)):
        return SparsityTarget.parse(value) if isinstance(value, str) else value
    raise ValueError("must be text, such as l0<=25 or flops<=1.8")


class ControllerConfig(Section):
    """How lambda follows the target. Durations are shares of the optimizer steps; the defaults suit 100 steps and more."""

    warmup_share: Fraction = 0.03
    """Share in which statistics are gathered before lambda starts (at least 3 steps)."""
    reach_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    """Share after which the target should be reached; the way there is smooth. The rest holds it, while the learning rate
    falls and the student can move less and less."""
    start_pull: PositiveFloat = 0.1
    """Size of the penalty's first gradient in parts of the distillation loss's gradient, over non-zero terms."""
    most_pull: PositiveFloat = 3.0
    """The penalties' gradient in parts of the distillation loss's beyond which lambda does not grow: more of it would
    change little now and take long to come down."""
    gain: PositiveFloat = 2.0
    """Change of log lambda for a change of 1 of log(statistic / wanted)."""
    integral_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.08
    """Share in which a lasting error moves log lambda by as much as its first appearance did."""
    smoothing_share: Fraction = 0.02
    """Time constant of the statistic's moving average, as a share (3 to 200 steps)."""
    most_change: PositiveFloat = 0.4
    """Largest change of log lambda in a step."""
    depth_buckets: Annotated[int, Field(ge=2)] = 10
    """Turn depths that get a lambda of their own with per_depth; the last one holds all deeper turns."""


class RegularisationConfig(Section):
    """Penalties on the student's query vectors: `terms` with fixed weights, one of them driven by `target` if given."""

    terms: Annotated[InstanceOf[PenaltySum], BeforeValidator(_penalties), PlainSerializer(str, return_type=str)] = (
        PenaltySum()
    )
    """Sum of flops, l1, l0flops(terms) and guard(floor, least), e.g. `0.002*flops + 0.1*guard(floor=8)`; or none."""
    ramp_share: Fraction = 0.33
    """Share of the optimizer steps over which fixed weights grow (quadratically) to their full value."""
    target: Annotated[InstanceOf[SparsityTarget], BeforeValidator(_target), PlainSerializer(str, return_type=str)] | None = (
        None
    )
    """Upper bound on sparsity, `flops<=1.8` or `l0<=25`; the first of flops, l1 and l0flops in `terms` is driven to hold
    it (flops, where there is none). Its weight is the lambda that control starts with; a weight of 1 lets the first
    batches choose. What is held is the cost of validation queries where data.validation is set (ten validations or more
    before the end), else that of the training queries, which is lower: dropout, and turns that were learnt."""
    per_depth: bool = False
    """Hold the target at every turn depth by itself, so that queries do not grow with the conversation."""
    controller: ControllerConfig = ControllerConfig()
    on_collapse: Literal["warn", "stop"] = "warn"
    """What to do when sparsity collapses: say so and go on, or stop the training."""

    @property
    def controlled(self) -> Penalty | None:
        """The penalty whose weight the target drives; None without a target."""
        if self.target is None:
            return None
        return next((penalty for _, penalty in self.terms.terms if penalty.SPARSIFIES), FlopsPenalty())

    @property
    def fixed(self) -> tuple[tuple[float, Penalty], ...]:
        """The penalties whose weights are fixed (after the ramp)."""
        return tuple((weight, penalty) for weight, penalty in self.terms.terms if penalty != self.controlled)

    @property
    def start_lambda(self) -> float | None:
        """Lambda that control starts with; None where the first batches choose it."""
        weights = [weight for weight, penalty in self.terms.terms if penalty == self.controlled]
        return weights[0] if weights and weights[0] != 1.0 else None

    def check_most_terms(self, most: int) -> None:
        """Raise ValueError when a part of it could never act on vectors of at most `most` terms."""
        inert = [f"the target {self.target}"] if self.target is not None and self.target.bound >= most else []
        for _, penalty in self.terms.terms:
            if isinstance(penalty, L0FlopsPenalty) and penalty.terms >= most:
                inert.append(f"{penalty}, which penalises vectors of more than {penalty.terms} terms")
            if isinstance(penalty, GuardPenalty) and penalty.floor >= most:
                inert.append(f"{penalty}, which exempts vectors of {penalty.floor} terms and fewer from all penalties")
        if inert:
            # Neither L0 nor FLOPS, the expected number of shared terms, exceeds the number of terms.
            raise ValueError(
                f"holds {inert[0]}, and no vector has more than {most} terms (top_terms), so it would have no effect; set "
                "its number below top_terms, or leave one of the two out"
            )

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> RegularisationConfig:
        fields = type(self).model_fields
        if self.target is None:
            if self.per_depth:
                raise ValueError("per_depth is true but there is no target to hold at each depth; set target, e.g. l0<=25")
            if self.controller != ControllerConfig():
                raise ValueError("controller is set but nothing is controlled without a target; set target, or leave it out")
        elif not self.per_depth and self.controller.depth_buckets != ControllerConfig().depth_buckets:
            raise ValueError("controller.depth_buckets has no effect without per_depth; set per_depth, or leave it out")
        if not any(penalty.SPARSIFIES for _, penalty in self.fixed) and self.ramp_share != fields["ramp_share"].default:
            raise ValueError(
                f"ramp_share is {self.ramp_share:g} but no fixed weight grows over it (terms: {self.terms}"
                f"{f', target: {self.target}' if self.target else ''}); leave ramp_share out"
            )
        return self

    @model_validator(mode="after")
    def _target_can_be_held(self) -> RegularisationConfig:
        if self.target is None or self.target.measure != "l0":
            return self
        bound, guard, controlled = self.target.bound, self.terms.guard, self.controlled
        if isinstance(controlled, L0FlopsPenalty) and controlled.terms >= bound:
            raise ValueError(
                f"terms holds {controlled} and target is {self.target}: queries of {controlled.terms} terms and fewer feel "
                f"no penalty, so the target cannot be held; set l0flops.terms below {number(bound)}"
            )
        if guard is not None and guard.floor >= bound:
            raise ValueError(
                f"terms holds {guard} and target is {self.target}: the guard exempts queries of {guard.floor} terms and "
                f"fewer, so the target cannot be held; set guard.floor below {number(bound)}"
            )
        return self
