"""The evaluation."""

from __future__ import annotations

from pydantic import Field, PositiveInt, field_validator, model_validator

from raydistill.config.engines import ExactEngine, SearchEngine
from raydistill.config.fields import Added, NonNegativeInt, Operational, PoolConfig, Section
from raydistill.config.measures import cutoff_of, measure_name
from raydistill.config.rerank import RerankConfig


class EvaluateConfig(Section):
    """What is measured on the test conversations."""

    measures: tuple[str, ...] = Field(default=("nDCG@3", "nDCG@10", "R@10", "R@100", "RR"), min_length=1)
    """ir_measures names, of measures that can be computed in this environment."""
    depth: PositiveInt = 100
    """Passages retrieved a query."""
    engine: Added[SearchEngine] = ExactEngine()
    """What searches: {kind: exact}, or {kind: seismic, query_cut: 10, …}, whose settings `raydistill tune-search` finds."""
    bootstrap_samples: PositiveInt = 1000
    """Resamples of the confidence intervals."""
    seed: NonNegativeInt = 0
    queries_per_part: Operational[PositiveInt] = 256
    workers: PoolConfig = PoolConfig()
    rerank: Added[RerankConfig | None] = None
    """A second stage over the student's first passages, measured as a system of its own. None leaves it out."""

    @field_validator("measures")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(measure_name, names))

    @model_validator(mode="after")
    def _deep_enough(self) -> EvaluateConfig:
        for name in self.measures:
            cutoff = cutoff_of(name)
            if cutoff is not None and cutoff > self.depth:
                raise ValueError(
                    f"measures has {name}, but only depth ({self.depth}) passages are retrieved; raise evaluate.depth"
                )
        if self.rerank is not None and self.rerank.depth > self.depth:
            raise ValueError(
                f"rerank.depth is {self.rerank.depth}, but only depth ({self.depth}) passages are retrieved; raise "
                "evaluate.depth or lower evaluate.rerank.depth"
            )
        return self
