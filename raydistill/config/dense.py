"""Dense encoders: one vector a text, compared by cosine similarity."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from raydistill.config.fields import ModelSource, Section, WorkerConfig


class DenseEncoderConfig(Section):
    """A dense sentence encoder whose cosine similarities are learned from."""

    model: ModelSource
    """Hub id, folder or package:NAME/FOLDER of an encoder trained for similarity."""
    revision: str | None = None
    pooling: Literal["mean", "cls"] = "mean"
    max_tokens: PositiveInt = 256
    trust_remote_code: bool = False


class BiEncoderConfig(DenseEncoderConfig):
    """A dense encoder that scores passages for queries."""

    query_prefix: str = ""
    """Put before every query, for encoders that were trained so ("query: " for E5)."""
    passage_prefix: str = ""
    """Put before every passage."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    workers: WorkerConfig = WorkerConfig()
