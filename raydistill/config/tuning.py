"""The search over configurations: which changes to a base configuration are tried, how they are measured, how many at once.

A study file names a base configuration and changes to it:

    base: mtrag-clapnq.yaml
    changes: {train.epochs: 3}            # to the base, for every trial
    tune:
      name: weights
      lines:                              # one factor at a time, everything else as in the base
        contrastive weight:
          - {label: "0", train.objective: "kld"}
          - {label: "0.1", train.objective: "0.9*kld + 0.1*infonce"}
        learning rate: {train.learning_rate: [2.0e-5, 5.0e-5]}
      space:                              # every combination, or `samples` of them
        train.sampling.passages: [9, 17]
        train.learning_rate: loguniform(low=1e-5, high=1e-4)

Trials are planned from this in `raydistill.tuning.trials` and run in `raydistill.tuning.study`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, InstanceOf, PlainSerializer, PositiveInt, field_validator, model_validator

from raydistill.config.expressions import Value, number, parse_value
from raydistill.config.fields import Location, Name, NonNegativeInt, Operational, Section

LABEL = "label"
"""The key of a point that names it and changes nothing."""


@dataclass(frozen=True)
class Range(Value):
    """Numbers between two bounds, drawn at random."""

    low: float = 0.0
    high: float = 1.0

    def check(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"{self.NAME}: low ({number(self.low)}) must be smaller than high ({number(self.high)})")

    def at(self, share: float) -> float:
        """Return the number below which `share` (in [0, 1)) of the draws lie, to 4 significant digits."""
        raise NotImplementedError


@dataclass(frozen=True)
class Uniform(Range):
    """Uniform between low and high."""

    NAME = "uniform"

    def at(self, share: float) -> float:
        return float(f"{self.low + share * (self.high - self.low):.4g}")


@dataclass(frozen=True)
class LogUniform(Range):
    """Uniform in the logarithm; for learning rates and weights."""

    NAME = "loguniform"
    low: float = 1e-5

    def check(self) -> None:
        super().check()
        if self.low <= 0:
            raise ValueError(f"{self.NAME}: low is {number(self.low)}; it must be > 0")

    def at(self, share: float) -> float:
        return float(f"{self.low * (self.high / self.low) ** share:.4g}")


RANGES: dict[str, type[Range]] = {kind.NAME: kind for kind in (Uniform, LogUniform)}


def _choices(value: Any) -> Any:
    if isinstance(value, str):
        return parse_value(value, RANGES)
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError("is an empty list; give at least one value")
        return tuple(value)
    raise ValueError("must be a list of values, or uniform(low=, high=) or loguniform(low=, high=)")


Choices = Annotated[
    tuple[Any, ...] | InstanceOf[Range],
    BeforeValidator(_choices),
    PlainSerializer(lambda value: str(value) if isinstance(value, Range) else list(value)),
]
"""Values to choose from, or a range to draw from."""


def _points(value: Any) -> Any:
    """Turn `{field: [values]}` into one point a value."""
    if isinstance(value, dict):
        if len(value) != 1 or not isinstance(values := next(iter(value.values())), (list, tuple)):
            raise ValueError("must be {section.field: [values]} with one field, or a list of {section.field: value, ...}")
        field = next(iter(value))
        return [{field: each} for each in values]
    return value


Point = dict[str, Any]
"""section.field -> value, and optionally `label`."""


class TuneConfig(Section):
    """Which trials a study consists of, and how they are compared. The base itself is always one of them."""

    name: Name
    """Name of the study; its table and report lie under {root}/runs/{name}, its trials under {root}/runs/{name}-ID."""
    lines: dict[str, Annotated[tuple[Point, ...], BeforeValidator(_points)]] = Field(default_factory=dict)
    """One-factor-at-a-time comparisons by name: points in order, each a set of changes to the base."""
    space: dict[str, Choices] = Field(default_factory=dict)
    """section.field -> values that are combined with those of all other fields."""
    samples: PositiveInt | None = None
    """Combinations of `space` that are drawn, without repetition; None tries them all."""
    seed: NonNegativeInt = 0
    """Of the draws; trial n of a seed is always the same, so more samples keep the finished ones."""
    measured_on: Literal["validation", "test"] = "validation"
    """Which conversations trials are measured on. Choosing by test turns makes their numbers worthless as a test."""
    measures: tuple[str, ...] = Field(default=("nDCG@10", "R@100"), min_length=1)
    """ir_measures names; the front and the best trial are by the first."""
    cost: Literal["flops", "l0"] = "flops"
    """The front's cost: expected terms shared with a random passage, or active terms a query."""
    max_concurrent: Operational[PositiveInt | None] = None
    """Trials at a time; None runs as many as the cluster can train at once."""

    @field_validator("lines")
    @classmethod
    def _points_change_something(cls, lines: dict[str, tuple[Point, ...]]) -> dict[str, tuple[Point, ...]]:
        for line, points in lines.items():
            if not points:
                raise ValueError(f"the line {line!r} has no points; give it some, or leave it out")
            labels = [point[LABEL] for point in points if LABEL in point]
            twice = sorted({str(label) for label in labels if labels.count(label) > 1})
            if twice:
                raise ValueError(
                    f"the line {line!r} has two points labelled {twice[0]!r}; tables and plots tell them apart by it"
                )
        return lines

    @model_validator(mode="after")
    def _something_to_try(self) -> TuneConfig:
        if not self.lines and not self.space:
            raise ValueError("there is nothing to try: give lines, or space, or both")
        ranges = [field for field, choices in self.space.items() if isinstance(choices, Range)]
        if ranges and self.samples is None:
            raise ValueError(f"space.{ranges[0]} is a range, which has no end of values; set samples to draw from it")
        if self.samples is not None and not self.space:
            raise ValueError("samples says how much of space is tried, and there is no space; leave it out")
        return self

    @property
    def combinations(self) -> float:
        """Number of combinations of `space`; infinite with a range."""
        return math.prod(math.inf if isinstance(each, Range) else len(each) for each in self.space.values())


class StudyConfig(Section):
    """A study file."""

    base: Location
    """The configuration that trials change: a local YAML file."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """section.field -> value, for every trial; relative locations start at the base's folder."""
    tune: TuneConfig
