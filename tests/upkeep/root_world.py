"""A small run root with one of everything that a run leaves: real segments and statistics, artifacts, a teacher cache."""

from __future__ import annotations

import hashlib
import io
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.lexical import LexicalStatistics
from raydistill.index.publish import IndexVersion, IndexWriter
from raydistill.index.segment import write_segment
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.storage.store import open_store
from raydistill.teachers.cache import EngineIdentity, GenerationCache
from raydistill.teachers.engine import Generation

VOCABULARY = 300
PASSAGES = 60
ENGINE = EngineIdentity("tiny", "float32")


def index_fingerprint(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def write_one_segment(path: Path, content: str, number: int, passages: int = PASSAGES, noise: float = 0.0) -> int:
    """Write segment `number` of an index, the same bytes for the same content and noise, and return its postings."""
    random = np.random.default_rng([number, *content.encode()])
    dense = (random.random((passages, VOCABULARY)) + noise) * (random.random((passages, VOCABULARY)) < 0.1)
    write_segment(path, SparseBatch.from_dense(dense), [f"{number}-{row}" for row in range(passages)], "f16")
    return int((dense > 0).sum())


def build_index(root: str, content: str, segments: int = 2, name: str = "passages", noise: float = 0.0) -> IndexVersion:
    """Build what is missing of an index and publish it, as the index stage does.

    With `noise` the bytes differ though the fingerprint does not, as those of an encoder on other hardware do.
    """
    writer = IndexWriter(root, name, index_fingerprint(content))
    statistics = writer.find_statistics()
    if statistics is None:
        counted = LexicalStatistics(np.arange(VOCABULARY, dtype=np.int64), PASSAGES * segments, len(content))
        writer.put_statistics(counted.to_bytes())
        statistics = writer.find_statistics()
    assert statistics is not None
    finished = writer.finished()
    names = [f"s{number}" for number in range(segments)]
    with tempfile.TemporaryDirectory() as folder:
        for number, segment in enumerate(names):
            if segment not in finished:
                path = Path(folder) / f"{segment}.seg"
                postings = write_one_segment(path, content, number, noise=noise)
                writer.put_segment(segment, path, PASSAGES, postings)
    return writer.commit(names, VOCABULARY, {"content": content, "statistics": statistics[0].to_json()})


def parquet(rows: int, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"score": np.random.default_rng(seed).random(rows)}), buffer)
    return buffer.getvalue()


def artifact_at(root: str, name: str) -> Artifact:
    return Artifact(root, "candidates", name, fingerprint("candidates", 1, {"name": name}, {}))


def make_artifact(root: str, name: str, commit: bool = True) -> Artifact:
    writer = ArtifactWriter(artifact_at(root, name))
    for number in range(2):
        writer.put_part(f"shard-{number}", parquet(200, number), ".parquet", rows=200)
    if commit:
        writer.commit(["shard-0", "shard-1"], {"teachers": ["a"]})
    return writer.artifact


def everything(root: str) -> IndexVersion:
    """Fill the root: two versions of an index, a committed and an unfinished artifact, kept generations, a run's log."""
    build_index(root, "first")
    version = build_index(root, "second")
    make_artifact(root, "done")
    make_artifact(root, "unfinished", commit=False)
    GenerationCache(root, ENGINE).add({"question": Generation("answer", 1, 1, "stop")})
    open_store(root).replace("runs/one/stages.json", b"[]")
    return version


def keys(root: str) -> list[str]:
    return [info.key for info in open_store(root).list("")]


def key_of(root: str, *pieces: str) -> str:
    """Return the first key that contains all the pieces."""
    return next(key for key in keys(root) if all(piece in key for piece in pieces))
