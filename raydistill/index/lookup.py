"""Passages of a published version by external id, and the other way round, without opening whole segments.

Only the ids' sections of each segment are fetched: 12 bytes and the id's own length a passage, mapped and not held in
memory. Deleted passages are not found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raydistill.index.forward import passage_id_arrays
from raydistill.index.passage_ids import find_ids
from raydistill.index.passage_masks import members
from raydistill.index.publish import IndexVersion
from raydistill.index.tombstones import live_mask


def find_passages(version: IndexVersion, passage_ids: Sequence[str]) -> NDArray[np.int64]:
    """Return passage numbers by external id, int64 [len(passage_ids)]; -1 where unknown or deleted."""
    numbers = np.full(len(passage_ids), -1, dtype=np.int64)
    for segment in version.segments:
        local = find_ids(*passage_id_arrays(version, segment), passage_ids)
        mask = live_mask(version, segment)
        here = np.flatnonzero(local >= 0)
        if mask is not None:
            here = here[members(mask, local[here])]
        numbers[here] = local[here] + segment.first_passage
    return numbers


def passage_names(version: IndexVersion, passages: NDArray[np.int64]) -> list[str]:
    """Return the external ids of passages by number, int64 [P], deleted ones too. Raises ValueError for a number that no
    segment holds."""
    names: list[str] = [""] * len(passages)
    named = 0
    for segment in version.segments:
        first = segment.first_passage
        here = np.flatnonzero((passages >= first) & (passages < first + segment.passages))
        if len(here) == 0:
            continue
        offsets, content, _ = passage_id_arrays(version, segment)
        for place, local in zip(here.tolist(), (passages[here] - first).tolist(), strict=True):
            names[place] = content[int(offsets[local]) : int(offsets[local + 1])].tobytes().decode()
        named += len(here)
    if named < len(passages):
        raise ValueError(f"{len(passages) - named} passage numbers are in no segment of {version.name}")
    return names
