"""Which candidates of a query enter a training step, and which queries a batch: declared here, drawn in `distill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, InstanceOf, PlainSerializer, PositiveInt, WithJsonSchema, model_validator

from raydistill.config.expressions import Value, parse_value
from raydistill.config.fields import Added, NonNegativeInt, Section


@dataclass(frozen=True)
class SamplingPolicy(Value):
    """How the places that gold and `top` passages leave are filled from the other candidates."""


@dataclass(frozen=True)
class Window(SamplingPolicy):
    """Uniform draws from a window of the teachers' ranking (1-based, inclusive), as in DiSCo (arXiv 2410.14609).

    Its first ranks are left out as a guard against false negatives. A query with too few candidates in the window fills up
    with the worst of those above it.
    """

    NAME = "window"
    first: int = 11
    last: int = 960

    def check(self) -> None:
        if not 1 <= self.first <= self.last:
            raise ValueError(f"{self.NAME}: first ({self.first}) must be at least 1 and not exceed last ({self.last})")


@dataclass(frozen=True)
class Uniform(SamplingPolicy):
    """Uniform draws from all other candidates."""

    NAME = "uniform"


@dataclass(frozen=True)
class Top(SamplingPolicy):
    """No draw: the best-ranked of the other candidates, the same at every visit."""

    NAME = "top"


@dataclass(frozen=True)
class Quantiles(SamplingPolicy):
    """Stratified draws over the teachers' scores, after Jang et al. (arXiv 2604.04734).

    The other candidates are cut into bins by score and every bin gives the same number of passages (or all it has). With
    `edges` mass the bins hold equally many candidates, so the sample mirrors the teachers' score distribution, with less
    variance than uniform draws; with width they are equally wide, so the sample covers the range of scores evenly and
    the few high ones weigh more than they do among the candidates.
    """

    NAME = "quantiles"
    bins: int = 8
    edges: Literal["mass", "width"] = "mass"

    def check(self) -> None:
        if self.bins < 1:
            raise ValueError(f"{self.NAME}: bins is {self.bins}; at least one is needed")


@dataclass(frozen=True)
class Importance(SamplingPolicy):
    """Draws without replacement, probabilities proportional to (1 - uniform) softmax(teacher / tau) + uniform / N.

    Each drawn passage carries the log of its inverse inclusion probability, which kld and listwise_ce add to their logits,
    so that sums over the sample estimate sums over all candidates (Horvitz and Thompson, 1952).
    """

    NAME = "importance"
    tau: float = 1.0
    uniform: float = 0.1

    def check(self) -> None:
        if self.tau <= 0:
            raise ValueError(f"{self.NAME}: tau is {self.tau:g}; it must be > 0")
        if not 0 < self.uniform <= 1:
            raise ValueError(
                f"{self.NAME}: uniform is {self.uniform:g}; it must lie in (0, 1], since a passage that can never be drawn "
                "cannot be corrected for"
            )


POLICIES: dict[str, type[SamplingPolicy]] = {kind.NAME: kind for kind in (Window, Uniform, Top, Quantiles, Importance)}


def _policy(value: Any) -> Any:
    if isinstance(value, (str, SamplingPolicy)):
        return parse_value(value, POLICIES) if isinstance(value, str) else value
    raise ValueError("must be text, such as uniform or window(first=11, last=960)")


STUDENT_BEST = 200
"""Passages that mining keeps of what a student finds for a conversation, best first."""


class SamplingConfig(Section):
    """Which candidates of a query enter a step: gold ones, the `top` best by the combined teachers, others by a policy."""

    passages: PositiveInt = 17
    """Passages a query; fewer where it has fewer candidates."""
    top: NonNegativeInt = 0
    """Best-ranked candidates always taken."""
    student_top: Added[Annotated[int, Field(ge=0, le=STUDENT_BEST)]] = 0
    """From the second round on: candidates that the student of the round before ranks highest, always taken beside the
    `top` ones: what it still takes for relevant (ANCE, arXiv 2007.00808). In the first round the policy has their places."""
    gold: Literal["one", "all", "none"] = "one"
    """one: one gold passage, drawn anew at each visit; the others take no place. all: every gold passage, leaving at least
    one place. none: gold passages take part like any other candidate."""
    policy: Annotated[
        InstanceOf[SamplingPolicy],
        BeforeValidator(_policy),
        PlainSerializer(str, return_type=str),
        WithJsonSchema({"type": "string"}),
    ] = Window()
    """What fills the remaining places: window(first=11, last=960), uniform, top, quantiles(bins=8, edges=mass) or
    importance(tau=1, uniform=0.1)."""
    batches: Literal["mixed", "depth", "source"] = "mixed"
    """mixed: queries in random order. depth: a batch holds queries of neighbouring turn depth, hence of like length, so
    that little is padded. source: a batch holds queries of one source of conversations."""

    def drawn_within(self, depth: int, candidates: int) -> float:
        """Return how many of a query's drawn passages are, on average, among its `depth` best ones, gold included; under
        importance how many can be.

        Args:
            depth: ranks counted from 1. candidates: of the query, at least `depth`.
        """
        gold = float(self.gold != "none")
        places = self.passages - self.top - gold
        first, last = self.top + 1, candidates
        if isinstance(self.policy, Window):
            first, last = max(first, self.policy.first), min(last, self.policy.last)
        elif isinstance(self.policy, Top):
            last = min(last, int(first + places - 1))
        elif isinstance(self.policy, Importance):
            return float(min(self.passages, depth))  # at most: how its mass lies is up to the scores
        pool, within = last - first + 1, min(last, depth) - first + 1
        share = max(within, 0) / pool if pool > 0 else 0.0
        return min(self.top, depth) + gold + min(places, max(pool, 0)) * share

    @model_validator(mode="after")
    def _consistent(self) -> SamplingConfig:
        if self.top + self.student_top >= self.passages:
            both = f" and student_top ({self.student_top}) together" if self.student_top else ""
            raise ValueError(
                f"top ({self.top}){both} must be smaller than passages ({self.passages}): one place is the gold's or the "
                "policy's"
            )
        if self.gold == "all" and self.passages == 1:
            raise ValueError("gold: all needs passages of at least 2, since one place is kept for another passage")
        places = self.passages - self.top - self.student_top - (self.gold != "none")
        if isinstance(self.policy, Quantiles) and self.policy.bins > places:
            raise ValueError(
                f"{self.policy} has more bins than places to fill ({places}: passages {self.passages}, top {self.top}, "
                f"gold {self.gold}); use fewer bins or more passages"
            )
        return self
