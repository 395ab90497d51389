"""What an evaluation actor does: encode and search a range of queries with every system, one query at a time, and store what
came back with its latency. Which systems there are, and what becomes of the parts, is in `evaluate`."""

from __future__ import annotations

import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.config import DocumentsConfig, SearchEngine, SeismicEngine, StudentConfig
from raydistill.conversations.text import student_text
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.documents import load_document_encoder
from raydistill.encoders.interface import SparseEncoder
from raydistill.evaluation.sparsity import active_share, query_flops
from raydistill.evaluation.summary import Role
from raydistill.index.forward import row_frequency
from raydistill.index.passage_masks import others
from raydistill.index.publish import IndexVersion
from raydistill.index.search import Searcher, open_searcher
from raydistill.index.seismic import SeismicSearcher, open_approximate
from raydistill.storage.artifacts import Artifact, ArtifactWriter
from raydistill.storage.folders import fetch_folder

PART_SCHEMA = pa.schema(
    [
        ("system", pa.string()),
        ("query_id", pa.string()),
        ("passages", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("terms", pa.int32()),
        ("flops", pa.float64()),
        ("postings", pa.int64()),
        ("cut", pa.bool_()),
        ("encode_ms", pa.float64()),
        ("search_ms", pa.float64()),
    ]
)


class QueryWorker:
    """Encodes and searches a range of queries with every system; runs in an actor (see `actor_pool.map_shards`)."""

    def __init__(
        self,
        writer: ArtifactWriter,
        index: IndexVersion,
        engine: SearchEngine,
        approximate: Artifact | None,
        documents: DocumentsConfig,
        student_config: StudentConfig,
        student: Artifact,
        depth: int,
        device: str,
    ) -> None:
        from raydistill.encoders.checkpoint import load_student

        self._writer = writer
        self._depth = depth
        self._searcher = open_searcher(index)
        self._engine: Searcher | SeismicSearcher = self._searcher
        if isinstance(engine, SeismicEngine):
            assert approximate is not None
            self._engine = open_approximate(approximate, self._searcher, engine.query_cut, engine.heap_factor)
        self._passage_share = passage_share(self._searcher)
        self._documents = load_document_encoder(documents, student_config, index.open_statistics(), device)
        with tempfile.TemporaryDirectory() as folder:
            loaded = load_student(fetch_folder(student, Path(folder)), student_config.trust_remote_code)
        self._student, self._tokenizer = loaded.encoder(device=device), loaded.tokenizer
        self._text = student_config.text
        self._separator = loaded.tokenizer.sep_token or ""
        for encoder in (self._documents, self._student):  # compile and allocate before the first clock starts
            self._timed_row(encoder, "warm up")

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        rows = [
            {"system": system["name"], "query_id": query_id, **self._row(system["role"], text)}
            for system in spec["systems"]
            for query_id, text in zip(spec["query_ids"], system["texts"], strict=True)
        ]
        content = parquet_bytes(pa.Table.from_pylist(rows, schema=PART_SCHEMA))
        turns = len(spec["query_ids"])
        return self._writer.put_part(spec["name"], content, ".parquet", rows=len(rows), counters={"turns": turns}).to_json()

    def _row(self, role: Role, text: str) -> dict[str, Any]:
        if role == "student":
            question, history = json.loads(text)
            text = student_text(question, [(asked, answered) for asked, answered in history], self._text, self._separator)
            tokens = len(self._tokenizer(text, truncation=False, verbose=False)["input_ids"])
            return {**self._timed_row(self._student, text), "cut": tokens > self._text.max_tokens}
        return self._timed_row(self._documents, text)

    def _timed_row(self, encoder: SparseEncoder, text: str) -> dict[str, Any]:
        start = time.perf_counter()
        vector = encoder.encode_queries([text])
        encoded = time.perf_counter()
        found = self._engine.search(vector, self._depth)
        searched = time.perf_counter()
        hits = int((found.passages[0] >= 0).sum())
        return {
            "passages": self._searcher.passage_ids(found.passages[0, :hits]),
            "scores": found.scores[0, :hits].tolist(),
            "terms": int(vector.lengths()[0]),
            "flops": float(query_flops(vector, self._passage_share)[0]),
            "postings": self._postings(vector),
            "encode_ms": (encoded - start) * 1e3,
            "search_ms": (searched - encoded) * 1e3,
        }

    def _postings(self, vector: SparseBatch) -> int | None:
        """Return the entries of postings and forward vectors that a search reads; None for an engine that does not tell."""
        if self._engine is not self._searcher:
            return None
        # A search of its own, so that counting is no part of the latency.
        _, cost = self._searcher.measured_search(vector, self._depth)
        return int(cost.postings[0] + cost.vector_entries[0])


def passage_share(searcher: Searcher) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the share of an index's passages in which each term is active, float64 [V]; deleted passages do not count.

    Reads only document frequencies, and the vectors of deleted passages.
    """
    counts = np.zeros(searcher.vocabulary_size, dtype=np.int64)
    passages = searcher.passages
    for segment, allowed in zip(searcher.segments, searcher.allowed, strict=True):
        counts += segment.document_frequency
        if allowed is not None:
            deleted = others(allowed, segment.passages)
            counts -= row_frequency(segment, deleted)
            passages -= len(deleted)
    return active_share(counts, max(1, passages))


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as the content of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
