"""How much of a turn's meaning lies in its history, by an earlier student, on Ray: before a teacher is paid for it.

The student encodes every turn with its conversation and alone; the cosine of the two vectors is 1 where the history adds
nothing. Artifact of kind "context", Parquet: query_id string, agreement float32. A worker holds the student and one part's
queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.actor_pool import map_shards
from raydistill.config import WorkerConfig
from raydistill.conversations.records import ConversationalQuery
from raydistill.conversations.text import history_pairs, student_text
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.student_source import open_student, student_identity
from raydistill.index.candidates import parquet_bytes
from raydistill.progress import track
from raydistill.storage.artifacts import Artifact, ArtifactWriter, Part, fingerprint

KIND = "context"
_FORMAT_VERSION = 1
_ROWS = 512


def context_agreement(
    queries: Sequence[ConversationalQuery], turns: str, student: str, root: str, workers: WorkerConfig
) -> dict[str, float]:
    """Return query id -> cosine of the student's vectors of the turn with and without its history, 0 to 1.

    Args:
        turns: fingerprint of the queries.
        student: see `student_source`.

    Raises ConfigError when there is no such student, ResourceError when the cluster cannot hold the workers.
    """
    name = fingerprint(KIND, _FORMAT_VERSION, {}, {"turns": turns, "student": student_identity(student)})
    artifact = Artifact(root, KIND, "turns", name)
    if artifact.find_manifest() is None:
        writer = ArtifactWriter(artifact)
        finished = writer.finished()
        ranges = [(start, min(start + _ROWS, len(queries))) for start in range(0, len(queries), _ROWS)]
        specs = [
            {"name": f"{start:08d}", "queries": [[q.query_id, q.question, history_pairs(q)] for q in queries[start:stop]]}
            for start, stop in ranges
            if f"{start:08d}" not in finished
        ]
        with track("context", len(queries), "turns") as advance:
            advance(sum(part.rows for part in finished.values()))
            for receipt in map_shards(specs, _Encoder, {"writer": writer, "student": student}, workers, "score"):
                advance(Part.from_json(receipt).rows)
        writer.commit([f"{start:08d}" for start, _ in ranges], {})
    found: dict[str, float] = {}
    for part in artifact.manifest().parts:
        table = pq.read_table(artifact.fetch(part)).to_pydict()
        found.update(zip(table["query_id"], table["agreement"], strict=True))
    return found


class _Encoder:
    def __init__(self, writer: ArtifactWriter, student: str) -> None:
        self._writer = writer
        loaded = open_student(student)
        self._encoder, self._text = loaded.encoder(device="cpu"), loaded.text
        self._separator = loaded.tokenizer.sep_token or ""

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        rows = [
            (query_id, question, [(asked, told) for asked, told in history])
            for query_id, question, history in spec["queries"]
        ]
        whole = self._vectors([(question, history) for _, question, history in rows])
        alone = self._vectors([(question, []) for _, question, _ in rows])
        table = pa.table(
            {
                "query_id": [query_id for query_id, _, _ in rows],
                "agreement": pa.array([_cosine(whole, alone, row) for row in range(len(rows))], pa.float32()),
            }
        )
        return self._writer.put_part(spec["name"], parquet_bytes(table), ".parquet", rows=len(rows)).to_json()

    def _vectors(self, turns: Sequence[tuple[str, list[tuple[str, str]]]]) -> SparseBatch:
        texts = [student_text(question, history, self._text, self._separator) for question, history in turns]
        return self._encoder.encode_queries(texts)


def _cosine(one: SparseBatch, other: SparseBatch, row: int) -> float:
    """Return the cosine of two rows; 0 where one of them is empty."""
    (terms, weights), (other_terms, other_weights) = one.row(row), other.row(row)
    _, mine, theirs = np.intersect1d(terms, other_terms, assume_unique=True, return_indices=True)
    length = float(np.linalg.norm(weights) * np.linalg.norm(other_weights))
    return float(weights[mine] @ other_weights[theirs]) / length if length else 0.0
