"""The document encoder: what turns passages, and the teachers' rewrites, into sparse vectors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from raydistill.config.fields import Fraction, ModelSource, NonNegativeFloat, Operational, Section


class LexicalDocumentsConfig(Section):
    """BM25 impacts over the student's vocabulary: no trained document model is needed."""

    kind: Literal["lexical"] = "lexical"
    k1: NonNegativeFloat = 0.9
    b: Fraction = 0.4


class SpladeDocumentsConfig(Section):
    """A trained SPLADE document encoder, frozen; it also encodes the teachers' rewrites."""

    kind: Literal["splade"] = "splade"
    model: ModelSource
    """Hub id or folder."""
    revision: str | None = None
    max_tokens: PositiveInt = 256
    max_terms: PositiveInt = 512
    """Heaviest terms kept of a passage."""
    batch_tokens: Operational[PositiveInt] = 8192
    trust_remote_code: bool = False


DocumentsConfig = Annotated[LexicalDocumentsConfig | SpladeDocumentsConfig, Field(discriminator="kind")]
