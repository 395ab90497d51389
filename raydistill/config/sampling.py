"""Which candidates of a query enter a training step."""

from __future__ import annotations

from pydantic import PositiveInt, model_validator

from raydistill.config.fields import NonNegativeInt, Section


class SamplingConfig(Section):
    """Which candidates of a query enter a step: `top` best by the teachers' mean, the rest drawn from a rank window."""

    passages: PositiveInt = 17
    """Passages a query, one gold among them where the query has one."""
    top: NonNegativeInt = 0
    """Best-ranked candidates always taken."""
    first_rank: PositiveInt = 11
    """First rank (1-based) of the window that the others are drawn from; 11 keeps likely false negatives out."""
    last_rank: PositiveInt = 960
    """Last rank of the window."""

    @model_validator(mode="after")
    def _consistent(self) -> SamplingConfig:
        if self.first_rank > self.last_rank:
            raise ValueError(f"first_rank ({self.first_rank}) must not exceed last_rank ({self.last_rank})")
        if self.top >= self.passages:
            raise ValueError(f"top ({self.top}) must be smaller than passages ({self.passages}): one place is the gold's")
        return self
