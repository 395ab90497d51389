"""Tombstones: small immutable objects that list the deleted passages of a segment, whose own file never changes.

    {root}/indexes/{name}/tombstones/{segment's sha256[:16]}-{sha256[:16]}.safetensors

A safetensors file with one array, `deleted`, uint32 [D]: the numbers within the segment, ascending, without repetition.
Its `__metadata__` has one string, `raydistill-tombstone`: JSON {"format_version": 1, "passages": of the segment, "segment":
its SHA-256}. (One string, because the library writes several in any order, and equal content shall give equal bytes.) A
tombstone lists everything that is deleted as of a version; deleting more puts another one in its place.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from raydistill.errors import CorruptObjectError
from raydistill.index.passage_masks import Mask, mask_without
from raydistill.index.segment_entries import SegmentEntry, Tombstone
from raydistill.storage.hashing import canonical_json, sha256_hex
from raydistill.storage.store import open_store

if TYPE_CHECKING:
    from raydistill.index.publish import IndexVersion

_FORMAT = "raydistill-tombstone"
_FORMAT_VERSION = 1
_ARRAY = "deleted"


def put_tombstone(root: str, index: str, segment: SegmentEntry, deleted: NDArray[np.int64], postings: int) -> Tombstone:
    """Store which passages of a segment are deleted and return where that lies.

    Args:
        deleted: int64 [D]; numbers within the segment, ascending, without repetition.
        postings: of these passages together.

    Raises CorruptObjectError when the store holds other bytes under this content's name.
    """
    content = save({_ARRAY: np.ascontiguousarray(deleted, dtype="<u4")}, _description(segment))
    digest = sha256_hex(content)
    key = f"indexes/{index}/tombstones/{segment.sha256[:16]}-{digest[:16]}.safetensors"
    store = open_store(root)
    if not store.put_if_absent(key, content):
        raise CorruptObjectError(
            f"{store.root}/{key} exists with bytes that do not match its name; delete it and make the change again"
        )
    return Tombstone(key, len(content), digest, len(deleted), int(postings))


def deleted_passages(version: IndexVersion, segment: SegmentEntry) -> NDArray[np.int64]:
    """Return the deleted passages of a segment, int64 [D], numbers within the segment, ascending.

    Raises CorruptObjectError when the object is damaged or belongs to another segment.
    """
    if segment.tombstone is None:
        return np.zeros(0, dtype=np.int64)
    path = version.fetch(segment.tombstone)
    found, described = _read(path)
    ascending = len(found) == segment.deleted and bool(np.all(found[1:] > found[:-1]))
    if described != _description(segment) or not ascending or (len(found) and found[-1] >= segment.passages):
        raise CorruptObjectError(
            f"tombstone {segment.tombstone.key} does not describe segment {segment.name} of {version.uri} "
            f"(it says {json.dumps(described)}, {len(found)} passages); go back to an earlier version, or rebuild the index"
        )
    return found


def live_mask(version: IndexVersion, segment: SegmentEntry) -> Mask | None:
    """Return the mask (see `passage_masks`) of a segment's passages that are not deleted; None where none is deleted."""
    if segment.tombstone is None:
        return None
    return mask_without(segment.passages, deleted_passages(version, segment))


def _description(segment: SegmentEntry) -> dict[str, str]:
    fields = {"format_version": _FORMAT_VERSION, "passages": segment.passages, "segment": segment.sha256}
    return {_FORMAT: canonical_json(fields)}


def _read(path: Path) -> tuple[NDArray[np.int64], dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(_ARRAY).astype(np.int64), dict(file.metadata() or {})
    except (SafetensorError, KeyError) as error:
        raise CorruptObjectError(f"{path} is no tombstone ({error}); rebuild the index, or go back a version") from None
