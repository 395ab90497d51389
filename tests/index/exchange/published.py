"""A small published index for the tests of the exchange."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from raydistill.encoders.batch import SparseBatch
from raydistill.index.changes import with_deleted
from raydistill.index.publish import IndexVersion, IndexWriter
from raydistill.index.segment import Impacts, write_segment
from raydistill.storage.artifacts import fingerprint


def random_vectors(seed: int, rows: int, vocabulary: int, share: float = 0.1) -> SparseBatch:
    """Random weights in (0, 3], some rows empty."""
    rng = np.random.default_rng(seed)
    dense = rng.random((rows, vocabulary)) * 3 * (rng.random((rows, vocabulary)) < share)
    dense[:: max(1, rows // 4)] = 0
    return SparseBatch.from_dense(dense.astype(np.float32))


def publish(
    root: str, folder: Path, parts: list[SparseBatch], impacts: Impacts = "f16", name: str = "small"
) -> IndexVersion:
    """Publish segments with ids like `s0-17`, some of them not ASCII."""
    writer = IndexWriter(root, name, fingerprint("index", 1, {"impacts": impacts, "nnz": [p.nnz for p in parts]}, {}))
    for number, part in enumerate(parts):
        path = folder / f"{number:05d}.seg"
        write_segment(path, part, [f"s{number}-{'ü' * (row % 3 == 0)}{row}" for row in range(len(part))], impacts)
        writer.put_segment(f"{number:05d}", path, len(part), part.nnz)
        path.unlink()
    return writer.commit([f"{number:05d}" for number in range(len(parts))], parts[0].vocabulary_size, {"impacts": impacts})


def without(version: IndexVersion, numbers: list[int]) -> IndexVersion:
    """Return a version with these passages deleted; it is not committed."""
    segments, _ = with_deleted(version, np.array(numbers, dtype=np.int64))
    return replace(version, version=version.version + 1, segments=segments)
