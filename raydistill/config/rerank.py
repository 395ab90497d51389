"""Cross-encoders, and the second stage of a search: one over the best passages of the first."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from raydistill.config.fields import ModelSource, Operational, Section, WorkerConfig

QueryText = Literal["last turn", "all user turns", "full conversation"]


class CrossEncoderConfig(Section):
    """A model that reads query and passage together."""

    model: ModelSource
    """Hub id, folder or package:NAME/FOLDER of a sequence classifier with one output, or with two (second less first)."""
    revision: str | None = None
    """Of a hub id."""
    query_tokens: PositiveInt = 192
    """Tokens of the query that are read; the oldest utterances go first."""
    max_tokens: PositiveInt = 512
    """Tokens of query and passage together; the passage's end is cut."""
    batch_size: Operational[PositiveInt] = 32
    """Pairs read at once."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: Operational[bool] = Field(default=False)
    """Let the model's own Python code run."""
    workers: WorkerConfig = WorkerConfig()

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.query_tokens >= self.max_tokens:
            raise ValueError(
                f"query_tokens is {self.query_tokens} and max_tokens {self.max_tokens}, so no room is left for the passage; "
                "lower query_tokens or raise max_tokens"
            )
        return self


class RerankConfig(CrossEncoderConfig):
    """A cross-encoder that orders the first passages of a result anew."""

    depth: PositiveInt = 50
    """Passages that are read; those below keep their place after them."""
    query: QueryText = "full conversation"
    """What of the conversation it reads, newest utterance first."""
