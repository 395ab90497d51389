"""Compaction: small segments, and those of which much is deleted, are rewritten into full ones without the deleted passages.

Searches find the same passages with the same scores, to the bit and in the same order: passages keep their order, so only
neighbours are merged, and stored impacts are not rounded again, so u8 segments are merged only where they have the same
scale. Passage numbers change; candidates that were mined keep the version that they name.

Which segments, and what becomes of them, is decided here; running it on Ray is in `change_job`.

Memory: the vectors of one rewritten segment, and their inversion (see `segment`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raydistill.encoders.batch import SparseBatch
from raydistill.index.changes import live_frequency, with_statistics
from raydistill.index.forward import forward_vectors, gathered_rows, passage_id_arrays, segment_header
from raydistill.index.publish import IndexVersion
from raydistill.index.segment import FORMAT_VERSION, write_segment
from raydistill.index.segment_entries import SegmentEntry, renumbered
from raydistill.index.tombstones import deleted_passages, put_tombstone
from raydistill.storage.artifacts import fingerprint

COMPACTION = "compaction"
"""Name in a version's metadata of what the compaction that made it did; changes made on it keep it."""
MERGED = "merged"
"""Name in a version's metadata of where the passages of rewritten segments were: segment name -> names of the segments that
were built or appended as they are, and so of the corpus parts that hold their texts."""
_COMPACTION_VERSION = 1
_ROWS_AT_A_TIME = 65_536


@dataclass(frozen=True)
class Group:
    """Neighbouring segments of a version that become one.

    Attributes:
        segments: in the order of the version, with their tombstones.
    """

    segments: tuple[SegmentEntry, ...]

    @property
    def live(self) -> int:
        """How many passages the group keeps."""
        return sum(segment.live for segment in self.segments)

    @property
    def fingerprint(self) -> str:
        """Identity of what is rewritten, 64 hex characters: whoever rewrites the same group writes the same bytes."""
        parts = [[each.sha256, each.tombstone.sha256 if each.tombstone else ""] for each in self.segments]
        return fingerprint("index-group", _COMPACTION_VERSION, {"parts": parts, "format": FORMAT_VERSION}, {})


def plan_groups(version: IndexVersion, full: int, least_fill: float, most_deleted: float) -> list[Group]:
    """Return what to rewrite, in order.

    Args:
        full: passages of a full segment; no group keeps more, unless a single segment does.
        least_fill: segments with fewer passages than this share of a full one are merged with such neighbours.
        most_deleted: segments of which more than this share is deleted are rewritten, alone if need be.
    """
    groups: list[Group] = []
    run: list[SegmentEntry] = []

    def close() -> None:
        if len(run) > 1 or any(_is_worn(segment, most_deleted) for segment in run):
            groups.append(Group(tuple(run)))
        run.clear()

    for segment in version.segments:
        if segment.live >= least_fill * full and not _is_worn(segment, most_deleted):
            close()
            continue
        joined = sum(each.live for each in run) + segment.live
        if run and (joined > full or not _have_one_scale(version, run[-1], segment)):
            close()
        run.append(segment)
    close()
    return groups


def _is_worn(segment: SegmentEntry, most_deleted: float) -> bool:
    return segment.deleted > most_deleted * segment.passages


def _have_one_scale(version: IndexVersion, first: SegmentEntry, second: SegmentEntry) -> bool:
    if version.metadata.get("impacts") in ("f16", "f32"):
        return True
    one, other = segment_header(version, first), segment_header(version, second)
    return (one.impacts, one.scale) == (other.impacts, other.scale)


def rewrite(version: IndexVersion, group: Group, path: Path) -> tuple[int, int, float]:
    """Write the group's passages that are not deleted as one segment; return passages, postings and the largest impact."""
    batches: list[SparseBatch] = [SparseBatch.from_rows([], version.vocabulary_size)]
    ids: list[str] = []
    for segment in group.segments:
        stored = forward_vectors(version, segment)
        kept = np.setdiff1d(np.arange(segment.passages), deleted_passages(version, segment), assume_unique=True)
        for start in range(0, len(kept), _ROWS_AT_A_TIME):
            batches.append(gathered_rows(stored, kept[start : start + _ROWS_AT_A_TIME]))
        offsets, content, _ = passage_id_arrays(version, segment)
        ids += [content[offsets[row] : offsets[row + 1]].tobytes().decode() for row in kept.tolist()]
    header = segment_header(version, group.segments[0])
    vectors = SparseBatch.concatenate(batches)
    write_segment(path, vectors, ids, header.impacts, header.scale if header.impacts == "u8" else None)
    return len(vectors), vectors.nnz, float(vectors.weights.max(initial=0.0))


@dataclass(frozen=True)
class Compaction:
    """A compaction, to be made on whatever version is current (see `commit.commit_change`).

    The version's metadata: COMPACTION: {"base", "segments_before", "segments_after", "passages_dropped", "left_out": groups
    that another writer has rewritten or replaced meanwhile}.

    Attributes:
        version: the groups were planned on.
        groups: those of it to replace.
        rewritten: fingerprint of a group -> its segment, for groups that keep passages.
    """

    version: IndexVersion
    groups: tuple[Group, ...]
    rewritten: Mapping[str, SegmentEntry]

    def __call__(self, base: IndexVersion) -> IndexVersion | None:
        """Return the version that follows from the base; None when there is nothing left to do.

        Passages of a group that were deleted since it was planned are deleted in its new segment too.
        """
        segments: list[SegmentEntry] = []
        waiting = list(self.groups)
        place = 0
        while place < len(base.segments):
            group = next((each for each in waiting if _begins(each, base.segments[place:])), None)
            found = (
                None if group is None else self._replaced(base, group, base.segments[place : place + len(group.segments)])
            )
            if group is None or found is None:
                segments.append(base.segments[place])
                place += 1
                continue
            segments += found
            place += len(group.segments)
            waiting.remove(group)
        if not segments:  # an index keeps a segment, so that it can be opened
            segments.append(base.segments[0])
        placed = renumbered(segments)
        if placed == base.segments:
            return None
        return self._version(base, placed, len(waiting))

    def _replaced(self, base: IndexVersion, group: Group, now: Sequence[SegmentEntry]) -> tuple[SegmentEntry, ...] | None:
        """Return what takes the place of a group's segments as they are now; None where passages have come back."""
        further = []
        start = postings = 0
        for before, after in zip(group.segments, now, strict=True):
            gone, still = deleted_passages(self.version, before), deleted_passages(base, after)
            if len(np.setdiff1d(gone, still, assume_unique=True)):
                return None
            kept = np.setdiff1d(np.arange(before.passages), gone, assume_unique=True)
            further.append(start + np.searchsorted(kept, np.setdiff1d(still, gone, assume_unique=True)))
            start += len(kept)
            postings += _deleted_postings(after) - _deleted_postings(before)
        if not group.live:
            return ()
        rewritten = self.rewritten[group.fingerprint]
        deleted: NDArray[np.int64] = np.concatenate(further).astype(np.int64)
        if not len(deleted):
            return (rewritten,)
        return (replace(rewritten, tombstone=put_tombstone(base.root, base.name, rewritten, deleted, postings)),)

    def _version(self, base: IndexVersion, segments: tuple[SegmentEntry, ...], left_out: int) -> IndexVersion:
        settings = {"groups": [group.fingerprint for group in self.groups], "base": base.version}
        name = fingerprint("index-compaction", _COMPACTION_VERSION, settings, {"base": base.fingerprint})
        passages = sum(segment.passages for segment in segments)
        metadata = {
            **base.metadata,
            COMPACTION: {
                "base": base.version,
                "segments_before": len(base.segments),
                "segments_after": len(segments),
                "passages_dropped": base.passages - passages,
                "left_out": left_out,
            },
            MERGED: self._merged(base, {segment.name for segment in segments}),
        }
        version = replace(base, fingerprint=name, segments=segments, passages=passages)
        return replace(version, metadata=with_statistics(version, metadata, live_frequency(base)))

    def _merged(self, base: IndexVersion, names: set[str]) -> dict[str, list[str]]:
        """Return the origins of the rewritten segments that a version has, those of earlier compactions among them."""
        known = dict(base.metadata.get(MERGED, {}))
        for group in self.groups:
            if group.live:
                origins = [origin for each in group.segments for origin in known.get(each.name, [each.name])]
                known[self.rewritten[group.fingerprint].name] = list(dict.fromkeys(origins))
        return {name: origins for name, origins in known.items() if name in names}


def _begins(group: Group, segments: Sequence[SegmentEntry]) -> bool:
    return [each.key for each in group.segments] == [each.key for each in segments[: len(group.segments)]]


def _deleted_postings(segment: SegmentEntry) -> int:
    return segment.tombstone.postings if segment.tombstone else 0
