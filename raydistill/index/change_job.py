"""The jobs that change an index: append, replace, delete and compact. New passages are encoded on Ray, by the very encoder
that the index was built with; compaction writes one segment a shard. What a change is, is in `changes` and `compaction`.

Any of them may be submitted again: what is encoded or rewritten already is not done again, and a change that was made is
not made twice. Several may run at once (see `commit`).

Memory: the driver holds the ids to delete, or the ids of one batch of passages; a worker holds one segment (see `build`).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from raydistill.actor_pool import connect, map_shards, require_shared_root
from raydistill.config import (
    CorpusConfig,
    DistillConfig,
    DocumentsConfig,
    IndexConfig,
    LearnedDocumentsConfig,
    LexicalDocumentsConfig,
    StudentConfig,
)
from raydistill.encoders.documents import document_encoder_settings
from raydistill.errors import ConfigError, DataError
from raydistill.index.changes import NewPassages, PassageChange, encoding_key
from raydistill.index.commit import commit_change, settled_head
from raydistill.index.compaction import Compaction, Group, plan_groups, rewrite
from raydistill.index.corpus import corpus_artifact, passage_parts, prepare_corpus
from raydistill.index.encode_parts import SegmentBuilder, run_parts
from raydistill.index.forward import segment_frequency
from raydistill.index.publish import IndexVersion, IndexWriter
from raydistill.index.segment import FORMAT_VERSION
from raydistill.index.segment_entries import MAX_IMPACT
from raydistill.progress import track
from raydistill.storage.artifacts import Artifact, Manifest, fingerprint
from raydistill.storage.files import open_input
from raydistill.storage.hashing import canonical_json, sha256_hex, unsealed
from raydistill.storage.store import open_store

logger = logging.getLogger("raydistill")
_REQUEST_VERSION = 1
_IDS_AT_A_TIME = 65_536


@dataclass(frozen=True)
class ChangeReport:
    """What a job did.

    Attributes:
        version: that is current now, as far as this job knows.
        changed: False when it found the change made already, or nothing to do.
    """

    version: IndexVersion
    changed: bool


def append_passages(config: DistillConfig, passages: CorpusConfig) -> ChangeReport:
    """Add passages with new ids to the current version of the configured index.

    Args:
        config: its root, index (name, passages_per_segment, workers), student and ray count.
        passages: files in the formats of a corpus.

    Raises:
        DataError: an id is in the index already, or a row is malformed.
        ConfigError: the configuration gives another encoder than the index was built with.
        StorageError: the index was never built, or was built anew with another encoder meanwhile.
    """
    return _add(config, passages, "append", missing_ok=True)


def replace_passages(config: DistillConfig, passages: CorpusConfig, missing_ok: bool = False) -> ChangeReport:
    """Give passages new content, in one version; ids that are not there are refused or, with `missing_ok`, added.

    Raises as `append_passages` does.
    """
    return _add(config, passages, "replace", missing_ok)


def delete_passages(config: DistillConfig, passage_ids: Sequence[str], missing_ok: bool = False) -> ChangeReport:
    """Delete passages; ids that are not there are refused or, with `missing_ok`, counted. Starts no Ray.

    Raises DataError for unknown ids, or none at all; StorageError when the index was never built.
    """
    ids = sorted(set(passage_ids))
    if not ids:
        raise DataError("there is no id to delete; name some, or a file that lists one a line")
    if len(ids) < len(passage_ids):
        logger.warning("delete: %d ids are listed more than once", len(passage_ids) - len(ids))
    settings = {"operation": "delete", "missing_ok": missing_ok, "ids": sha256_hex("\n".join(ids).encode())}
    request = fingerprint("index-request", _REQUEST_VERSION, settings, {})

    def batches() -> Iterator[list[str]]:
        for start in range(0, len(ids), _IDS_AT_A_TIME):
            yield ids[start : start + _IDS_AT_A_TIME]

    return _commit(config, PassageChange("delete", request, batches, None, missing_ok))


def compact_index(config: DistillConfig) -> ChangeReport:
    """Rewrite small segments and those of which much is deleted (see `compaction` and index.change), on Ray.

    Raises StorageError when the index was never built.
    """
    index, root = config.index, config.root
    version = settled_head(root, index.name).version
    settings = (index.passages_per_segment, index.change.least_fill, index.change.most_deleted)
    groups = plan_groups(version, *settings)
    if not groups:
        return ChangeReport(version, changed=False)
    waiting = [group for group in groups if group.live and _name(group) not in _writer(version, group).finished()]
    specs = []
    for group in waiting:
        first = version.segments.index(group.segments[0])
        specs.append({"first": first, "last": first + len(group.segments)})
    workers = index.workers.model_copy(update={"gpus": 0.0})
    with track("compact", sum(group.live for group in waiting), "passages") as advance:
        if specs:
            _connect(config)
        for receipt in map_shards(specs, _Rewriter, {"version": version}, workers, "index"):
            advance(receipt["passages"])
    rewritten = {each.fingerprint: _writer(version, each).entries([_name(each)])[0] for each in groups if each.live}
    return _commit(config, Compaction(version, tuple(groups), rewritten))


def read_ids(uri: str) -> list[str]:
    """Return the ids that a text file lists, one a line, blank lines left out. Raises DataError when it is no UTF-8."""
    with open_input(uri) as stream:
        try:
            lines = [line.rstrip(b"\r\n").decode("utf-8") for line in stream]
        except UnicodeDecodeError as error:
            raise DataError(f"{uri} is not UTF-8 text ({error}); write one passage id a line") from None
    return [line for line in lines if line.strip()]


def pinned_versions(version: IndexVersion) -> dict[int, int]:
    """Return how many candidates artifacts of the run root hold passage numbers of each version of the index."""
    store = open_store(version.root)
    pinned: dict[int, int] = {}
    for info in store.list(f"artifacts/candidates/{version.name}-"):
        if info.key.endswith("/_manifest.json"):
            manifest = Manifest.from_json(unsealed(store.read(info.key), f"{store.root}/{info.key}"))
            number = int(manifest.metadata["index"]["version"])
            pinned[number] = pinned.get(number, 0) + 1
    return pinned


def drift_advice(version: IndexVersion, config: IndexConfig) -> str | None:
    """Return what to do about a lexical index whose statistics no longer fit its passages; None where they do."""
    drift = version.metadata.get("drift")
    if drift is None or drift["changed_share"] <= config.change.drift:
        return None
    return (
        f"{drift['changed_share']:.1%} of the passages were added or deleted since the index's statistics were counted, "
        f"which weight all of them (index.change.drift is {config.change.drift:g}); inverse document frequencies have moved "
        f"by {drift['idf_shift']:.1%}: put the changes into data.corpus and build the index anew with `raydistill index`"
    )


def _connect(config: DistillConfig) -> None:
    connect(config.ray)
    require_shared_root(config.root)


def _commit(config: DistillConfig, change: Callable[[IndexVersion], IndexVersion | None]) -> ChangeReport:
    """Commit a change and tell whether this call, or an earlier one, made it."""
    made = False

    def remembered(base: IndexVersion) -> IndexVersion | None:
        nonlocal made
        version = change(base)
        made = version is not None
        return version

    version = commit_change(config.root, config.index.name, remembered)
    return ChangeReport(version, made)


def _add(config: DistillConfig, passages: CorpusConfig, operation: Any, missing_ok: bool) -> ChangeReport:
    base = settled_head(config.root, config.index.name).version
    documents = _documents(base, config.student)
    rows = config.index.passages_per_segment
    planned = corpus_artifact(passages, rows, config.root)
    settings = {"operation": operation, "missing_ok": missing_ok}
    request = fingerprint("index-request", _REQUEST_VERSION, settings, {"passages": planned.fingerprint})
    _connect(config)
    corpus = prepare_corpus(passages, rows, config.index.workers, config.root)
    encoding = _Encoding(config, base, corpus)
    change = PassageChange(operation, request, lambda: _ids(corpus), encoding.found(), missing_ok)
    if not change.check(base):
        return ChangeReport(base, changed=False)
    return _commit(config, replace(change, new=change.new or encoding.made(documents)))


def _documents(base: IndexVersion, student: StudentConfig) -> DocumentsConfig:
    """Return the configuration of the encoder that a version was built with, checked against its identity.

    Raises ConfigError when what it names is not what it was, or the student's vocabulary is another one.
    """
    encoding_key(base)  # raises where there is no encoder
    documents: DocumentsConfig = TypeAdapter(DocumentsConfig).validate_python(base.metadata["documents"])
    if isinstance(documents, LearnedDocumentsConfig) and documents.trained is not None:
        # It lies in the same run root, wherever that is now.
        documents = documents.model_copy(update={"trained": {**documents.trained, "root": base.root}})
    now, then = document_encoder_settings(documents, student), base.metadata["encoder"]
    if canonical_json(now) != canonical_json(then):
        raise ConfigError(
            f"{base.uri} was built by the encoder {canonical_json(then)}, and what the configuration gives now is "
            f"{canonical_json(now)}; use the models it was built with, or build the index anew with `raydistill index`"
        )
    return documents


class _Encoding:
    """The passages of a corpus, encoded alike to those of a version."""

    def __init__(self, config: DistillConfig, base: IndexVersion, corpus: Artifact) -> None:
        self._config = config
        self._base = base
        self._corpus = corpus
        self._parts = passage_parts(corpus.manifest())
        self._key = encoding_key(base)
        inputs = {"corpus": corpus.fingerprint}
        name = fingerprint("index-passages", _REQUEST_VERSION, {"encoding": self._key, "format": FORMAT_VERSION}, inputs)
        self._writer = IndexWriter(base.root, base.name, name)

    def found(self) -> NewPassages | None:
        """Return the passages where all of them were encoded before, None where not."""
        finished = self._writer.finished()
        return self._new() if all(part.name in finished for part in self._parts) else None

    def made(self, documents: DocumentsConfig) -> NewPassages:
        """Encode what is missing, on Ray, and return all passages."""
        if isinstance(documents, LexicalDocumentsConfig):
            statistics = self._base.open_statistics()
            assert statistics is not None, "encoding_key has seen them"
            self._writer.put_statistics(statistics)
        workers = self._config.index.workers
        arguments = {
            "corpus": self._corpus,
            "writer": self._writer,
            "lexicon": None,
            "documents": documents,
            "student": self._config.student,
            "impacts": self._base.metadata["impacts"],
            "device": "cuda" if workers.gpus else "cpu",
        }
        run_parts(self._parts, self._writer.finished(), SegmentBuilder, arguments, workers, "index")
        return self._new()

    def _new(self) -> NewPassages:
        base, corpus = self._base, self._corpus
        segments = self._writer.entries(
            [part.name for part in self._parts], {part.name: part.sha256 for part in self._parts}
        )
        frequency = np.zeros(base.vocabulary_size, dtype=np.int64)
        for segment in segments:
            frequency += segment_frequency(base, segment)
        return NewPassages(segments, self._key, {"name": corpus.name, "fingerprint": corpus.fingerprint}, frequency)


def _ids(corpus: Artifact) -> Iterator[list[str]]:
    """Yield the ids of a corpus by batches."""
    for part in passage_parts(corpus.manifest()):
        with pq.ParquetFile(corpus.fetch(part)) as file:
            for batch in file.iter_batches(batch_size=_IDS_AT_A_TIME, columns=["passage_id"]):
                yield batch.column("passage_id").to_pylist()


def _writer(version: IndexVersion, group: Group) -> IndexWriter:
    """Return the writer of a group's segment: whoever rewrites the same group meets the same one."""
    return IndexWriter(version.root, version.name, group.fingerprint)


def _name(group: Group) -> str:
    return f"merged-{group.fingerprint[:12]}"


class _Rewriter:
    """Rewrites one group of segments."""

    def __init__(self, version: IndexVersion) -> None:
        self._version = version

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        group = Group(self._version.segments[spec["first"] : spec["last"]])
        with tempfile.TemporaryDirectory(prefix="raydistill-compact-") as folder:
            path = Path(folder) / "merged.seg"
            passages, postings, largest = rewrite(self._version, group, path)
            _writer(self._version, group).put_segment(_name(group), path, passages, postings, {MAX_IMPACT: largest})
        return {"passages": passages}
