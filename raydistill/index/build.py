"""The index stage on Ray: encode the parts of a corpus, one segment a part, and publish them as an index version.

A lexical index is built in two passes, because BM25 needs the statistics of the whole collection before the first
passage can be encoded. The workers are in `encode_parts`; segments are written by `segment`, committed by `publish`.
Either pass continues where an earlier run was stopped. Segments of parts that an earlier version encoded alike are taken
over (see `reuse`), so that after a change of one input file only its parts are encoded.

Memory: the driver holds receipts and one array of document frequencies; a worker holds one part's vectors and their
inversion, 21 bytes a posting at its peak (2.6 GB for a million passages of 121 terms), besides its encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from raydistill.config import IndexConfig, LexicalDocumentsConfig, StudentConfig
from raydistill.encoders.documents import document_encoder_settings
from raydistill.encoders.lexical import LexicalStatistics
from raydistill.errors import DataError
from raydistill.index.changes import encoding_identity
from raydistill.index.corpus import passage_parts
from raydistill.index.encode_parts import SegmentBuilder, StatisticsCounter, run_parts
from raydistill.index.encoding_summary import encoding_summary, in_words
from raydistill.index.forward import segment_frequency
from raydistill.index.publish import IndexVersion, IndexWriter, find_version, make_current, missing_objects
from raydistill.index.reuse import Reused, reusable_segments, taken_over
from raydistill.index.segment import FORMAT_VERSION
from raydistill.index.summary import index_summary
from raydistill.storage.artifacts import Artifact, ArtifactWriter, Part, fingerprint

logger = logging.getLogger("raydistill")
_BUILD_VERSION = 1
_LEXICON_VERSION = 1


def build_index(config: IndexConfig, student: StudentConfig, corpus: Artifact, root: str) -> IndexVersion:
    """Return the index version of a corpus by the configured document encoder, building what of it is missing.

    The version's metadata: "encoder" (what the vectors depend on), "documents" (its configuration), "impacts",
    "segment_format", "corpus" (see `corpus.indexed_corpus`), "encoding" (what it took, see `encoding_summary`, and
    "reused_segments", "reused_passages"), "summary" (see `summary.index_summary`) and "statistics", a Part:
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
        finished = set(ArtifactWriter(lexicon).finished())
        run_parts(parts, finished, StatisticsCounter, arguments, config.workers, "lexicon")
        writer.put_statistics(_merged(lexicon, parts).to_bytes())
    reused = _reused(config, encoder, parts, writer)
    vocabulary_size = _encode(config, student, corpus, parts, writer, ArtifactWriter(lexicon), reused)
    if not lexical and writer.find_statistics() is None:
        _put_frequencies(ArtifactWriter(lexicon), reused)
        writer.put_statistics(_merged(lexicon, parts).to_bytes())
    found = writer.find_statistics()
    assert found is not None
    statistics = LexicalStatistics.from_bytes(found[1])
    adopted = {part: each.entry for part, each in reused.items()}
    sources = {part.name: part.sha256 for part in parts}
    names = [part.name for part in parts]
    encoding = _encoding(writer, corpus, names, reused)
    logger.info("index %s: %s", config.name, in_words(encoding))
    metadata = {
        "encoder": encoder,
        "documents": config.documents.model_dump(mode="json"),
        "impacts": config.impacts,
        "segment_format": FORMAT_VERSION,
        "corpus": {"name": corpus.name, "fingerprint": corpus.fingerprint},
        "encoding": encoding,
        "statistics": found[0].to_json(),
        "summary": index_summary(writer.entries(names, sources, adopted), statistics.document_frequency),
    }
    return writer.commit(names, vocabulary_size or len(statistics.document_frequency), metadata, sources, adopted)


def planned_index(config: IndexConfig, student: StudentConfig, corpus: Artifact, root: str) -> IndexVersion | None:
    """Return the version that `build_index` would return without building anything, or None."""
    encoder = document_encoder_settings(config.documents, student)
    version = find_version(root, config.name, _fingerprint(config, encoder, corpus))
    # What was lost is built again, to the same bytes and names.
    return None if version is None or missing_objects(version) else version


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


def _reused(config: IndexConfig, encoder: dict[str, Any], parts: Sequence[Part], writer: IndexWriter) -> dict[str, Reused]:
    """Return the segments of other versions that this one takes over, by part."""
    existing = find_version(writer.root, writer.name, writer.fingerprint)
    if existing is not None:  # committed, and something of it was lost since
        return taken_over(existing)
    lexical = isinstance(config.documents, LexicalDocumentsConfig)
    statistics = writer.find_statistics() if lexical else None
    identity = encoding_identity({"encoder": encoder, "impacts": config.impacts}, statistics[0].sha256 if statistics else "")
    reused = reusable_segments(writer.root, writer.name, identity, parts)
    if reused:
        passages = sum(each.entry.passages for each in reused.values())
        logger.info(
            "index %s: %d of %d segments (%d passages) are taken over from earlier versions",
            config.name,
            len(reused),
            len(parts),
            passages,
        )
    return reused


def _encode(
    config: IndexConfig,
    student: StudentConfig,
    corpus: Artifact,
    parts: Sequence[Part],
    writer: IndexWriter,
    lexicon: ArtifactWriter,
    reused: Mapping[str, Reused],
) -> int:
    """Build the missing segments and return the size of the vocabulary, 0 when none was missing."""
    arguments = {
        "corpus": corpus,
        "writer": writer,
        "lexicon": None if isinstance(config.documents, LexicalDocumentsConfig) else lexicon,
        "documents": config.documents,
        "student": student,
        "impacts": config.impacts,
        "device": "cuda" if config.workers.gpus else "cpu",
        "places": {part: each.place for part, each in reused.items()},
    }
    there = {part for part, each in reused.items() if not each.lost}
    finished = there | (set(writer.finished()) - set(reused))
    receipts = run_parts(parts, finished, SegmentBuilder, arguments, config.workers, "index")
    return int(receipts[0]["vocabulary_size"]) if receipts else 0


def _put_frequencies(lexicon: ArtifactWriter, reused: Mapping[str, Reused]) -> None:
    """Put the document frequencies of segments that were not encoded here, where a worker would have put them."""
    finished = lexicon.finished()
    for part, each in reused.items():
        if part not in finished:
            frequency = segment_frequency(each.version, each.entry)
            statistics = LexicalStatistics(frequency, each.entry.passages, each.entry.postings)
            lexicon.put_part(part, statistics.to_bytes(), ".safetensors", rows=each.entry.passages)


def _encoding(writer: IndexWriter, corpus: Artifact, parts: Sequence[str], reused: Mapping[str, Reused]) -> dict[str, Any]:
    """Return metadata["encoding"]."""
    receipts = writer.finished()
    counters = [receipts[part]["counters"] for part in parts if part in receipts and part not in reused]
    return {
        **encoding_summary(counters, int(corpus.manifest().metadata["quarantined"])),
        "reused_segments": len(reused),
        "reused_passages": sum(each.entry.passages for each in reused.values()),
    }
