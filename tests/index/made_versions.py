"""Index versions of made-up vectors, published for real."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from raydistill.encoders.batch import SparseBatch
from raydistill.index.publish import IndexVersion, IndexWriter
from raydistill.index.segment import write_segment

VOCABULARY = 300


def made_rows(seed: int, rows: int, terms: int = 12) -> SparseBatch:
    """Return rows of small whole weights, so that equal scores abound."""
    rng = np.random.default_rng(seed)
    return SparseBatch.from_rows(
        (
            {int(term): float(rng.integers(1, 5)) for term in rng.choice(VOCABULARY, rng.integers(0, terms), replace=False)}
            for _ in range(rows)
        ),
        VOCABULARY,
    )


def publish_version(root: str, folder: Path, content: int, sizes: tuple[int, ...], name: str = "made") -> IndexVersion:
    """Publish a version with one segment for each size; ids and vectors tell which content it has."""
    writer = IndexWriter(root, name, hashlib.sha256(f"{content} {sizes}".encode()).hexdigest())
    names = []
    for position, rows in enumerate(sizes):
        vectors = made_rows(1000 * content + position, rows)
        path = folder / f"{content}-{position}.seg"
        write_segment(path, vectors, [f"c{content}-s{position}-{row}" for row in range(rows)], "f16")
        names.append(f"c{content}-s{position}")
        writer.put_segment(names[-1], path, rows, vectors.nnz)
    return writer.commit(names, VOCABULARY, {})
