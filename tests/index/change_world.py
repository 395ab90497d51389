"""A small index made of given vectors, and changes of it without an encoder; shared by the tests of changes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.lexical import LexicalStatistics
from raydistill.index.changes import NewPassages, Operation, PassageChange, encoding_key
from raydistill.index.commit import commit_change
from raydistill.index.compaction import Compaction, Group, plan_groups, rewrite
from raydistill.index.publish import IndexVersion, IndexWriter
from raydistill.index.segment import Impacts, write_segment
from raydistill.index.segment_entries import MAX_IMPACT, SegmentEntry
from raydistill.storage.artifacts import fingerprint

TERMS = 12
Vectors = Mapping[str, dict[int, float]]
"""Passage id -> term -> weight, in order."""


def stored(root: str, what: str, vectors: Vectors, impacts: Impacts, rows: int) -> tuple[IndexWriter, list[str]]:
    """Put the vectors as segments of so many rows, not committed; return their writer and names."""
    writer = IndexWriter(root, "passages", fingerprint("test", 1, {"what": what, "vectors": dict(vectors)}, {}))
    ids, names = list(vectors), []
    for start in range(0, len(ids), rows):
        chosen = ids[start : start + rows]
        batch = SparseBatch.from_rows([vectors[each] for each in chosen], TERMS)
        names.append(f"s{start // rows}")
        with tempfile.TemporaryDirectory() as folder:
            write_segment(Path(folder) / "x.seg", batch, chosen, impacts)
            counters = {MAX_IMPACT: float(batch.weights.max(initial=0))}
            writer.put_segment(names[-1], Path(folder) / "x.seg", len(batch), batch.nnz, counters)
    return writer, names


def frequency(vectors: Vectors) -> np.ndarray:
    terms = [term for weights in vectors.values() for term in weights]
    return np.bincount(np.array(terms, dtype=int), minlength=TERMS)


def build(root: str, vectors: Vectors, impacts: Impacts = "f32", rows: int = 4) -> IndexVersion:
    writer, names = stored(root, "build", vectors, impacts, rows)
    counts = frequency(vectors)
    statistics = writer.put_statistics(LexicalStatistics(counts, len(vectors), int(counts.sum())).to_bytes())
    metadata = {"encoder": {"kind": "given"}, "documents": {"kind": "splade"}, "impacts": impacts}
    return writer.commit(names, TERMS, {**metadata, "statistics": statistics.to_json()})


def change(
    base: IndexVersion,
    operation: Operation,
    vectors: Vectors | None = None,
    ids: Sequence[str] = (),
    missing_ok: bool = False,
    rows: int = 4,
) -> PassageChange:
    """Return a change by these vectors (or, to delete, ids), its segments stored."""
    request = fingerprint("test", 1, {"o": operation, "v": dict(vectors or {}), "ids": list(ids), "m": missing_ok}, {})
    new = None
    if vectors is not None:
        writer, names = stored(base.root, "change", vectors, base.metadata["impacts"], rows)
        new = NewPassages(
            writer.entries(names), encoding_key(base), {"name": "x", "fingerprint": request}, frequency(vectors)
        )
        ids = list(vectors)
    return PassageChange(operation, request, lambda: [ids], new, missing_ok)


def apply(base: IndexVersion, *arguments: object, **more: object) -> IndexVersion:
    return commit_change(base.root, base.name, change(base, *arguments, **more))  # type: ignore[arg-type]


def rewritten(version: IndexVersion, group: Group) -> SegmentEntry:
    writer = IndexWriter(version.root, version.name, group.fingerprint)
    with tempfile.TemporaryDirectory() as folder:
        passages, postings, largest = rewrite(version, group, Path(folder) / "x.seg")
        writer.put_segment("merged", Path(folder) / "x.seg", passages, postings, {MAX_IMPACT: largest})
    return writer.entries(["merged"])[0]


def compaction(version: IndexVersion, full: int = 6, least_fill: float = 1.0, most_deleted: float = 0.3) -> Compaction:
    groups = plan_groups(version, full, least_fill, most_deleted)
    return Compaction(version, tuple(groups), {each.fingerprint: rewritten(version, each) for each in groups if each.live})


def random_vectors(names: Sequence[str], seed: int) -> dict[str, dict[int, float]]:
    """Return small whole weights: sums are exact in float32 in any order, and ties abound."""
    rng = np.random.default_rng(seed)
    made = {}
    for name in names:
        terms = rng.choice(TERMS, size=rng.integers(0, 5), replace=False)
        made[name] = {int(term): float(rng.integers(1, 4)) for term in sorted(terms)}
    return made
