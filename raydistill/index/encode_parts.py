"""Ray workers that turn corpus parts into what an index is made of: counts of terms, and segments.

Which parts, for which index, is decided in `build` and `change_job`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raydistill.actor_pool import map_shards
from raydistill.config import DocumentsConfig, LexicalDocumentsConfig, StudentConfig, WorkerConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.documents import load_document_encoder, load_term_counter
from raydistill.encoders.interface import EncodingTally
from raydistill.encoders.lexical import LexicalStatistics, count_statistics
from raydistill.index.encoding_summary import segment_counters
from raydistill.index.passage_files import passage_batches
from raydistill.index.publish import IndexWriter
from raydistill.index.segment import Impacts, write_segment
from raydistill.index.segment_entries import MAX_IMPACT
from raydistill.progress import track
from raydistill.storage.artifacts import Artifact, ArtifactWriter, Part

_PASSAGES_AT_A_TIME = 4096
"""Read, tokenised and sorted by length together: more leave less padding (see `encoding`)."""


def run_parts(
    parts: Sequence[Part],
    finished: Collection[str],
    worker: type,
    arguments: dict[str, Any],
    workers: WorkerConfig,
    title: str,
) -> list[dict[str, Any]]:
    """Run the worker on every part that is not finished and return the receipts, with progress in passages."""
    specs = [{"part": part.to_json()} for part in parts if part.name not in finished]
    total = sum(part.rows for part in parts)
    receipts = []
    pool = workers if title == "index" else workers.model_copy(update={"gpus": 0.0})
    with track(title, total, "passages") as advance:
        advance(total - sum(int(spec["part"]["rows"]) for spec in specs))
        for receipt in map_shards(specs, worker, arguments, pool, "index"):
            receipts.append(receipt)
            advance(receipt["passages"], f"{receipt['rate']:.0f}/s a worker" if "rate" in receipt else "")
    return receipts


class StatisticsCounter:
    """Counts the terms of one corpus part."""

    def __init__(self, corpus: Artifact, lexicon: ArtifactWriter, student: StudentConfig) -> None:
        self._corpus = corpus
        self._lexicon = lexicon
        self._counter = load_term_counter(student)

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        part = Part.from_json(spec["part"])
        texts = (
            passage.full_text
            for batch in passage_batches(self._corpus.fetch(part), _PASSAGES_AT_A_TIME)
            for passage in batch
        )
        statistics = count_statistics(self._counter, texts)
        self._lexicon.put_part(part.name, statistics.to_bytes(), ".safetensors", rows=statistics.passages)
        return {"passages": statistics.passages}


class SegmentBuilder:
    """Encodes one corpus part and puts its segment.

    Args:
        lexicon: where the document frequencies of its vectors go too, None for nowhere.
        places: part -> (folder, name) of a segment that another version has and that was lost; it goes where it was.
    """

    def __init__(
        self,
        corpus: Artifact,
        writer: IndexWriter,
        lexicon: ArtifactWriter | None,
        documents: DocumentsConfig,
        student: StudentConfig,
        impacts: Impacts,
        device: str,
        places: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        self._corpus = corpus
        self._writer = writer
        self._lexicon = lexicon
        self._impacts = impacts
        self._places = places or {}
        found = writer.find_statistics() if isinstance(documents, LexicalDocumentsConfig) else None
        self._encoder = load_document_encoder(documents, student, found[1] if found else None, device)
        self._free_since = time.monotonic()

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        part = Part.from_json(spec["part"])
        ids: list[str] = []
        tally = EncodingTally()
        vectors = SparseBatch.concatenate(list(self._encoder.encode_stream(self._texts(part, ids), tally)))
        if self._lexicon is not None:
            # Before the segment: whoever finds the segment may rely on its frequencies.
            self._lexicon.put_part(part.name, _frequencies(vectors).to_bytes(), ".safetensors", rows=len(vectors))
        with tempfile.TemporaryDirectory(prefix="raydistill-segment-") as folder:
            path = Path(folder) / f"{part.name}.seg"
            write_segment(path, vectors, ids, self._impacts)
            # Reading and encoding; what it takes to store the segment is in the worker's next one.
            now = time.monotonic()
            counters = segment_counters(tally, int((vectors.lengths() == 0).sum()), now - self._free_since)
            self._free_since = now
            largest = {MAX_IMPACT: float(vectors.weights.max(initial=0.0))}
            place, name = self._places.get(part.name, (self._writer.fingerprint, part.name))
            writer = replace(self._writer, fingerprint=place)
            writer.put_segment(name, path, len(vectors), vectors.nnz, counters | largest)
        rate = len(vectors) / counters["worker_seconds"]
        return {"passages": len(vectors), "vocabulary_size": vectors.vocabulary_size, "rate": rate}

    def _texts(self, part: Part, ids: list[str]) -> Iterator[list[str]]:
        """Yield a corpus part's texts by windows, and put their ids into the list."""
        for passages in passage_batches(self._corpus.fetch(part), _PASSAGES_AT_A_TIME):
            ids.extend(passage.passage_id for passage in passages)
            yield [passage.full_text for passage in passages]


def _frequencies(vectors: SparseBatch) -> LexicalStatistics:
    frequency = np.bincount(vectors.term_ids, minlength=vectors.vocabulary_size).astype(np.int64)
    return LexicalStatistics(frequency, len(vectors), vectors.nnz)
