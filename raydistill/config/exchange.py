"""Taking vectors out of a published index for other engines, and into one from other encoders."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from raydistill.config.fields import Location, ModelSource, Name, NonNegativeInt, Operational, PoolConfig, Section

ExportFormat = Literal["parquet", "jsonl", "anserini", "opensearch", "qdrant", "ciff", "pisa"]
WHOLE_NUMBERS = ("anserini", "ciff", "pisa")
"""Formats that hold term frequencies, so that impacts must be made whole numbers."""
BY_TERM = ("ciff", "pisa")
"""Formats that hold postings, term by term, in one set of files for the whole index."""


class ExportConfig(Section):
    """What an export holds."""

    format: ExportFormat
    """parquet and jsonl keep the stored impacts; anserini, ciff (BMP reads it) and pisa make them whole numbers;
    opensearch and qdrant are bodies of their bulk requests."""
    bits: int = Field(default=8, ge=2, le=31)
    """Whole numbers go up to 2^bits - 1, which the largest impact of the index becomes. BMP reads at most 8 bits."""
    scale: PositiveFloat | None = None
    """Whole number = impact * scale, rounded, at least 1; None takes the scale that `bits` means."""
    terms: Operational[ModelSource | None] = None
    """Where the terms' strings come from: a text file (.txt) with one term a line, or a tokenizer (folder or hub id); a
    relative path begins with ./; None names terms by their id."""
    passages_per_file: PositiveInt = 100_000
    """Passages in one output file of the formats that are written passage by passage."""
    field: Name = "sparse"
    """Name of the vector field (opensearch) or the named vector (qdrant)."""
    field_type: Literal["rank_features", "sparse_vector"] = "rank_features"
    """OpenSearch: the type of that field in the mapping that is written beside the files."""
    overlap_queries: Operational[NonNegativeInt] = 100
    """Queries by which the effect of making impacts whole numbers is measured; 0 leaves it out."""
    workers: PoolConfig = PoolConfig()

    @model_validator(mode="after")
    def _whole_numbers_only(self) -> ExportConfig:
        if self.scale is not None and self.format not in WHOLE_NUMBERS:
            raise ValueError(
                f"scale is {self.scale:g}, but {self.format} keeps the impacts as they are; leave scale out, or take one of "
                f"{', '.join(WHOLE_NUMBERS)}"
            )
        return self


class ImportConfig(Section):
    """Vectors made elsewhere, and how they become an index."""

    files: tuple[Location, ...] = Field(min_length=1)
    """Parquet (id, term_ids, weights) or JSON lines ({"id", "vector": {term: weight}}); a * may stand in the last
    component; .gz, .bz2 and .zst are read."""
    name: Name
    """Of the index."""
    vocabulary_size: PositiveInt | None = None
    """Terms of the encoder; None takes it from `terms`, or from Parquet files that state it."""
    terms: Operational[ModelSource | None] = None
    """Needed where the vectors name terms by strings: a text file (.txt) with one term a line, or a tokenizer, as in an
    export."""
    impacts: Literal["f32", "f16", "u8"] = "f16"
    """Stored precision of impacts."""
    passages_per_segment: PositiveInt = 1_000_000
    """Passages in a segment; also the most that one worker holds in memory."""
    max_bad_rows: NonNegativeInt = 0
    """Rows that may be left out, listed with their reasons; one more stops the import."""
    workers: PoolConfig = PoolConfig()
