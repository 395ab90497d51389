"""The index stage on Ray: encode the parts of a corpus, one segment a part, and publish them as an index version.

A lexical index is built in two passes, because BM25 needs the statistics of the whole collection before the first
passage can be encoded. Segments are written by `segment`, committed by `publish`. Either pass continues where an
earlier run was stopped.

Memory: the driver holds receipts and one array of document frequencies; a worker holds one part's vectors and their
inversion, about 26 bytes a posting (3 GB for a million passages of 120 terms), besides its encoder.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raydistill.actor_pool import map_shards
from raydistill.config import DocumentsConfig, IndexConfig, LexicalDocumentsConfig, StudentConfig, WorkerConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.documents import document_encoder_settings, load_document_encoder, load_term_counter
from raydistill.encoders.interface import EncodingTally
from raydistill.encoders.lexical import LexicalStatistics, count_statistics
from raydistill.errors import DataError
from raydistill.index.corpus import passage_parts
from raydistill.index.encoding_summary import encoding_summary, in_words, segment_counters
from raydistill.index.passage_files import passage_batches
from raydistill.index.publish import IndexVersion, IndexWriter, find_version, make_current
from raydistill.index.segment import FORMAT_VERSION, Impacts, write_segment
from raydistill.progress import track
from raydistill.storage.artifacts import Artifact, ArtifactWriter, Part, fingerprint
from raydistill.storage.inventory import named_objects
from raydistill.storage.store import open_store

logger = logging.getLogger("raydistill")
_BUILD_VERSION = 1
_LEXICON_VERSION = 1
_PASSAGES_AT_A_TIME = 4096
"""Read, tokenised and sorted by length together: more leave less padding (see `encoding`)."""


def build_index(config: IndexConfig, student: StudentConfig, corpus: Artifact, root: str) -> IndexVersion:
    """Return the index version of a corpus by the configured document encoder, building what of it is missing.

    The version's metadata: "encoder" (what the vectors depend on), "documents" (its configuration), "impacts",
    "corpus" (see `corpus.indexed_corpus`), "encoding" (what it took, see `encoding_summary`) and "statistics", a Part:
    `version.open_statistics()` gives the bytes of `LexicalStatistics`, whose document_frequency is that of the index for
    every kind of encoder. (For a lexical one its tokens are the collection's; for others, which do not count tokens, they
    are the postings.)

    Raises:
        DataError, StorageError: the corpus or the root cannot be used.
        ConfigError: the encoder cannot be loaded.
        ResourceError: the cluster can never hold index.workers.
    """
    version = planned_index(config, student, corpus, root)
    if version is not None:
        make_current(version)
        return version
    parts = passage_parts(corpus.manifest())
    if not parts:
        raise DataError(f"{corpus.uri} has no passages; an index needs at least one")
    encoder = document_encoder_settings(config.documents, student)
    name = _fingerprint(config, encoder, corpus)
    writer = IndexWriter(root, config.name, name)
    lexical = isinstance(config.documents, LexicalDocumentsConfig)
    lexicon = _lexicon(config, encoder, corpus, root, name)
    if lexical and writer.find_statistics() is None:
        arguments = {"corpus": corpus, "lexicon": ArtifactWriter(lexicon), "student": student}
        _run(parts, set(ArtifactWriter(lexicon).finished()), _StatisticsCounter, arguments, config.workers, "lexicon")
        writer.put_statistics(_merged(lexicon, parts).to_bytes())
    vocabulary_size = _encode(config, student, corpus, parts, writer, ArtifactWriter(lexicon))
    if not lexical and writer.find_statistics() is None:
        writer.put_statistics(_merged(lexicon, parts).to_bytes())
    found = writer.find_statistics()
    assert found is not None
    receipts = writer.finished()
    encoding = encoding_summary(
        (receipts[part.name]["counters"] for part in parts if part.name in receipts),
        int(corpus.manifest().metadata["quarantined"]),
    )
    logger.info("index %s: %s", config.name, in_words(encoding))
    metadata = {
        "encoder": encoder,
        "documents": config.documents.model_dump(mode="json"),
        "impacts": config.impacts,
        "corpus": {"name": corpus.name, "fingerprint": corpus.fingerprint},
        "encoding": encoding,
        "statistics": found[0].to_json(),
    }
    size = vocabulary_size or len(LexicalStatistics.from_bytes(found[1]).document_frequency)
    return writer.commit([part.name for part in parts], size, metadata)


def planned_index(config: IndexConfig, student: StudentConfig, corpus: Artifact, root: str) -> IndexVersion | None:
    """Return the version that `build_index` would return without building anything, or None."""
    encoder = document_encoder_settings(config.documents, student)
    version = find_version(root, config.name, _fingerprint(config, encoder, corpus))
    if version is None or not _is_whole(version):
        return None
    return version


def _is_whole(version: IndexVersion) -> bool:
    """Whether all that the version names is still there. What was lost is built again, to the same bytes and names."""
    store = open_store(version.root)
    found = {info.key: info.size for info in store.list(f"indexes/{version.name}/")}
    return all(found.get(named.key) == named.size for named in named_objects(version.to_json()))


def _fingerprint(config: IndexConfig, encoder: dict[str, Any], corpus: Artifact) -> str:
    settings = {"encoder": encoder, "impacts": config.impacts, "segment_format": FORMAT_VERSION}
    return fingerprint("index", _BUILD_VERSION, settings, {"corpus": corpus.fingerprint})


def _lexicon(config: IndexConfig, encoder: dict[str, Any], corpus: Artifact, root: str, index: str) -> Artifact:
    """Return the artifact of document frequencies by part.

    Those of a lexical index depend on the tokenizer only and outlive changes of k1 and b; those of another encoder are
    counted from its vectors.
    """
    lexical = isinstance(config.documents, LexicalDocumentsConfig)
    settings = {"tokenizer": encoder["tokenizer"]} if lexical else {"index": index}
    return Artifact(
        root, "lexicon", config.name, fingerprint("lexicon", _LEXICON_VERSION, settings, {"corpus": corpus.fingerprint})
    )


def _merged(lexicon: Artifact, parts: Sequence[Part]) -> LexicalStatistics:
    """Commit the statistics of all parts and return their sum."""
    manifest = ArtifactWriter(lexicon).commit([part.name for part in parts], {})
    total: LexicalStatistics | None = None
    for part in manifest.parts:
        counted = LexicalStatistics.from_bytes(lexicon.fetch(part).read_bytes())
        total = counted if total is None else total.merge(counted)
    assert total is not None
    return total


def _encode(
    config: IndexConfig,
    student: StudentConfig,
    corpus: Artifact,
    parts: Sequence[Part],
    writer: IndexWriter,
    lexicon: ArtifactWriter,
) -> int:
    """Build the missing segments and return the size of the vocabulary, 0 when none was missing."""
    arguments = {
        "corpus": corpus,
        "writer": writer,
        "lexicon": lexicon,
        "documents": config.documents,
        "student": student,
        "impacts": config.impacts,
        "device": "cuda" if config.workers.gpus else "cpu",
    }
    receipts = _run(parts, set(writer.finished()), _SegmentBuilder, arguments, config.workers, "index")
    return int(receipts[0]["vocabulary_size"]) if receipts else 0


def _run(
    parts: Sequence[Part], finished: set[str], worker: type, arguments: dict[str, Any], workers: WorkerConfig, title: str
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


class _StatisticsCounter:
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


class _SegmentBuilder:
    """Encodes one corpus part and puts its segment."""

    def __init__(
        self,
        corpus: Artifact,
        writer: IndexWriter,
        lexicon: ArtifactWriter,
        documents: DocumentsConfig,
        student: StudentConfig,
        impacts: Impacts,
        device: str,
    ) -> None:
        self._corpus = corpus
        self._writer = writer
        self._lexicon = None if isinstance(documents, LexicalDocumentsConfig) else lexicon
        self._impacts = impacts
        found = writer.find_statistics() if self._lexicon is None else None
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
            self._writer.put_segment(part.name, path, len(vectors), vectors.nnz, counters)
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
