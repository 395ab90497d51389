"""Segments that a new version can take over from earlier ones, because the same input was encoded alike.

A segment is made of one corpus part and of nothing else that changes: equal bytes of the part, equal encoder, stored
precision and format give equal bytes of the segment. So when some input files change, the segments of the others are taken
over as they are. BM25 also depends on the statistics of the whole collection, which every change of its passages
changes: a lexical index takes segments over only where these are equal, as after files were renamed or put in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raydistill.index.changes import encoding_key
from raydistill.index.publish import IndexVersion, load_version, version_numbers
from raydistill.index.segment import FORMAT_VERSION
from raydistill.index.segment_entries import SegmentEntry
from raydistill.storage.artifacts import Part
from raydistill.storage.store import open_store


@dataclass(frozen=True)
class Reused:
    """A segment of another version.

    Attributes:
        version: that names it. entry: its entry there.
        lost: whether its object is gone, so that it must be made again.
    """

    version: IndexVersion
    entry: SegmentEntry
    lost: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """(folder, name) that the segment was put under."""
        *_, folder, file = self.entry.key.split("/")
        return folder, file.rpartition("-")[0]


def reusable_segments(root: str, name: str, encoding: str, parts: Sequence[Part]) -> dict[str, Reused]:
    """Return the segments of published versions, newest first, that equal what encoding corpus parts would give, by part.

    Args:
        encoding: `changes.encoding_identity` of the version to be built.
    """
    wanted = {part.sha256 for part in parts}
    sizes = _sizes(root, name)
    found: dict[str, Reused] = {}
    for number in reversed(version_numbers(root, name)):
        if len(found) == len(wanted):
            break
        version = load_version(root, name, number)
        if version.metadata.get("segment_format") != FORMAT_VERSION or encoding_key(version) != encoding:
            continue
        for entry in version.segments:
            if entry.source in wanted and sizes.get(entry.key) == entry.size:
                found.setdefault(entry.source, Reused(version, entry))
    return {part.name: found[part.sha256] for part in parts if part.sha256 in found}


def taken_over(version: IndexVersion) -> dict[str, Reused]:
    """Return the segments that a version took over from others, by name, and which of them are lost."""
    sizes = _sizes(version.root, version.name)
    reused = {entry.name: Reused(version, entry, sizes.get(entry.key) != entry.size) for entry in version.segments}
    return {name: each for name, each in reused.items() if each.place[0] != version.fingerprint[:16]}


def _sizes(root: str, name: str) -> dict[str, int]:
    return {info.key: info.size for info in open_store(root).list(f"indexes/{name}/segments/")}
