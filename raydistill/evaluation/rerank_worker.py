"""What a second-stage actor of the evaluation does: read the student's first passages again with a cross-encoder, in a new
order, and store what came of it as a system of its own. Which queries there are, and what becomes of the parts, is in
`evaluate`."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydistill.config import RerankConfig
from raydistill.errors import DataError
from raydistill.evaluation.query_worker import PART_SCHEMA, parquet_bytes
from raydistill.index.publish import IndexVersion
from raydistill.index.segment_group import Holding, SegmentGroup, corpora_of
from raydistill.reranking.order import query_text, reordered
from raydistill.storage.artifacts import ArtifactWriter
from raydistill.storage.parts import Part


class RerankWorker:
    """Reorders the rows of one system for a range of queries; runs in an actor (see `actor_pool.map_shards`)."""

    def __init__(self, writer: ArtifactWriter, index: IndexVersion, config: RerankConfig, system: str, name: str) -> None:
        import torch

        from raydistill.reranking.cross_encoder import CrossEncoder

        torch.set_num_threads(max(1, int(config.workers.cpus)))
        corpora = corpora_of(index)
        if not corpora:
            raise DataError(
                f"the corpus of {index.uri} is not there, so there is no text to read again; run the index stage, or leave "
                "evaluate.rerank out"
            )
        self._writer, self._config, self._system, self._name = writer, config, system, name
        self._encoder = CrossEncoder(config, "cuda" if config.workers.gpus else "cpu", "evaluate.rerank")
        self._encoder.scores("warm up", ["warm up"])
        everything = tuple(range(len(index.segments)))
        self._holding = Holding(index.root, index.name, index.version, index.fingerprint, everything, corpora)
        self._passages = SegmentGroup(threads=1, versions=1)

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        table = pq.read_table(self._writer.artifact.fetch(Part.from_json(spec["part"])))
        rows = table.filter(pc.equal(table.column("system"), self._system)).to_pylist()
        texts = dict(zip(spec["query_ids"], spec["texts"], strict=True))
        again = [self._row(row, *json.loads(texts[row["query_id"]])) for row in rows]
        content = parquet_bytes(pa.Table.from_pylist(again, schema=PART_SCHEMA))
        turns = len(spec["query_ids"])
        return self._writer.put_part(spec["name"], content, ".parquet", rows=len(again), counters={"turns": turns}).to_json()

    def _row(self, row: dict[str, Any], question: str, history: list[list[str]]) -> dict[str, Any]:
        """Return a system's row in the second stage's order; its time is added to that of the search."""
        ids = row["passages"]
        found = self._passages.find(self._holding, ids[: self._config.depth])
        hits = self._passages.hits(self._holding, found[found >= 0])
        text_of = {hit.passage_id: hit.text for hit in hits}
        read = [place for place, passage_id in enumerate(ids[: self._config.depth]) if text_of.get(passage_id) is not None]
        start = time.perf_counter()
        query = query_text(question, [(asked, answered) for asked, answered in history], self._config.query)
        scores = self._encoder.scores(query, [str(text_of[ids[place]]) for place in read])
        order, new = reordered(scores, len(ids), read)
        took = 1e3 * (time.perf_counter() - start)
        return {
            **row,
            "system": self._name,
            "passages": [ids[place] for place in order],
            "scores": np.asarray(new, dtype=np.float32).tolist(),
            "search_ms": row["search_ms"] + took,
        }
