"""What a version's manifest tells of its content at a glance: counts, lengths, maxima, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.index.segment_entries import SegmentEntry


def index_summary(segments: Sequence[SegmentEntry], document_frequency: NDArray[np.int64]) -> dict[str, Any]:
    """Return metadata["summary"] of a version.

    Args:
        segments: of the version.
        document_frequency: int64 [V]; of its passages that are not deleted.

    Returns (JSON values; of the passages that are not deleted unless said otherwise):
        segments, passages, postings, terms: numbers; terms are those that at least one passage holds.
        deleted: passages that are deleted and still stored.
        mean_terms: of a passage. largest_frequency: passages that hold the commonest term.
        max_impact: largest stored impact, deleted passages included; 0 where segments do not tell.
        bytes: of segments and tombstones.
    """
    tombstones = [segment.tombstone for segment in segments if segment.tombstone is not None]
    passages = sum(segment.live for segment in segments)
    postings = sum(segment.postings for segment in segments) - sum(each.postings for each in tombstones)
    return {
        "segments": len(segments),
        "passages": passages,
        "deleted": sum(each.passages for each in tombstones),
        "postings": postings,
        "terms": int(np.count_nonzero(document_frequency)),
        "mean_terms": postings / passages if passages else 0.0,
        "largest_frequency": int(document_frequency.max(initial=0)),
        "max_impact": max((segment.max_impact for segment in segments), default=0.0),
        "bytes": sum(segment.size for segment in segments) + sum(each.size for each in tombstones),
    }
