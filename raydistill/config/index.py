"""The index and the mining of candidates from it."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from raydistill.config.documents import DocumentsConfig, LexicalDocumentsConfig
from raydistill.config.fields import Added, Fraction, Name, NonNegativeFloat, Operational, PoolConfig, Section


class ChangeConfig(Section):
    """Changes of an index by passage id, and their compaction."""

    least_fill: Operational[Fraction] = 0.5
    """`compact` merges neighbouring segments that hold less than this share of passages_per_segment."""
    most_deleted: Operational[Fraction] = 0.2
    """`compact` rewrites segments of which more than this share is deleted."""
    drift: Operational[NonNegativeFloat] = 0.1
    """lexical: share of passages added and deleted since the index was built beyond which building it anew is advised, since
    all of them are weighted by the statistics of then."""


class IndexConfig(Section):
    """How the corpus is sharded and stored."""

    name: Name = "passages"
    documents: DocumentsConfig = LexicalDocumentsConfig()
    passages_per_segment: PositiveInt = 1_000_000
    """Passages in a segment; also the most that one worker holds in memory."""
    impacts: Literal["f32", "f16", "u8"] = "f16"
    """Stored precision of impacts."""
    workers: PoolConfig = PoolConfig()
    change: Operational[ChangeConfig] = ChangeConfig()


class ScoreConfig(Section):
    """Mining: which passages become candidates, and their exact score by every teacher."""

    top_k: PositiveInt = 1000
    """Passages retrieved for each teacher's rewrite; the candidates are their union and the gold passages."""
    student_encodes_rewrites: Added[bool] = False
    """From the second round on, the student of the round before encodes the rewrites too, beside the document encoder: every
    teacher NAME is joined by NAME@student, whose scores are those of the student's vector of the same rewrite, scaled to
    spread as NAME's do. What the student has learned about terms (weights, expansion) then meets what the language models
    know about the conversation. Both lists take part in `train.combine`, with the weight of NAME, so a scorer's share of a
    mean falls; terms on the rewrites' vectors learn from the mean of both vectors; `teacher=NAME` stays NAME's own list."""
    queries_per_part: PositiveInt = 1024
    """Queries in one Parquet part, and the most that a crash can lose."""
    workers: PoolConfig = PoolConfig()
