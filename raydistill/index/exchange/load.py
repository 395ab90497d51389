"""Vectors made elsewhere become an index version, on Ray; the files' form is in `vector_rows`.

A shard is a JSON lines file, or a run of row groups of a Parquet file. A worker reads its shard, checks every row, puts a
segment as soon as it is full, and at the end puts what it learned: refused rows, document frequencies and hashes of the
ids. A repeated import reads unfinished shards again and puts the segments that are missing. Ids that two shards share are
an error, since either passage may be the right one, and are looked for up to 30 million passages.

Parts of the artifact (kind "import"), for file f and shard s; segments are called {f:05d}-{s:05d}-{block:05d}:
    {f:05d}-{s:05d}-refused.json        {"file", "rows": [{"place", "kind", "reason"}, …]}
    {f:05d}-{s:05d}-ids.u64             ascending little-endian 64-bit hashes of the ids
    {f:05d}-{s:05d}.safetensors         `LexicalStatistics` of the shard, put last: the shard is done

Memory: a worker holds one segment's vectors and their inversion (see `raydistill.index.build`); the driver up to 28 bytes a
passage while it looks for shared ids.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from raydistill.actor_pool import connect, map_shards
from raydistill.config import ImportConfig, RayConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.lexical import LexicalStatistics
from raydistill.errors import DataError
from raydistill.index.exchange.columns import stated_metadata
from raydistill.index.exchange.terms import term_names
from raydistill.index.exchange.vector_rows import RefusedRow, VectorReader, is_parquet, names_terms, parquet_shards
from raydistill.index.passage_files import shared_hash
from raydistill.index.publish import IndexVersion, IndexWriter, find_version, make_current
from raydistill.index.segment import FORMAT_VERSION, Impacts, write_segment
from raydistill.index.segment_entries import MAX_IMPACT
from raydistill.index.summary import index_summary
from raydistill.progress import track
from raydistill.storage.artifacts import Artifact, ArtifactWriter, Part, fingerprint
from raydistill.storage.files import input_files, input_fingerprint, open_input, open_seekable
from raydistill.storage.hashing import sha256_hex

logger = logging.getLogger("raydistill")
_IMPORT_VERSION = 1
_MOST_CHECKED_FOR_SHARED_IDS = 30_000_000


def import_vectors(config: ImportConfig, root: str, ray: RayConfig) -> IndexVersion:
    """Return the index version of the files' vectors, making what of it is missing, and make it current.

    The version's metadata: "impacts", "statistics" and "summary" (see `raydistill.index.build`), and "import": {"files",
    "passages", "refused" by kind, "artifact"}. It names no encoder, so passages can be deleted but not added as text.

    Raises:
        DataError: more than max_bad_rows rows are refused, two shards share an id, there is no passage, or nothing says how
            many terms there are.
        StorageError: a file or the root cannot be used.
        ConfigError: the tokenizer cannot be loaded. ResourceError: the cluster can never hold the workers.
    """
    files = input_files(config.files)
    names = None if config.terms is None else term_names(config.terms, config.vocabulary_size)
    size = len(names) if names is not None else _stated_size(files, config)
    vocabulary = None if names is None else sha256_hex("\n".join(names).encode())
    settings = {
        "impacts": config.impacts,
        "passages_per_segment": config.passages_per_segment,
        "segment_format": FORMAT_VERSION,
        "vocabulary_size": size,
        "vocabulary": vocabulary,
    }
    identity = fingerprint("import", _IMPORT_VERSION, settings, {"files": input_fingerprint(files)})
    artifact = Artifact(root, "import", config.name, identity)
    manifest = artifact.find_manifest()
    if manifest is not None:
        _check_limit(artifact, manifest.parts, config.max_bad_rows)
        version = find_version(root, config.name, identity)
        if version is not None:
            make_current(version)
            return version
    specs = _specs(files, config.passages_per_segment)
    connect(ray)
    ledger, writer = ArtifactWriter(artifact), IndexWriter(root, config.name, identity)
    arguments = {
        "ledger": ledger,
        "writer": writer,
        "terms": None if names is None else {name: term for term, name in enumerate(names)},
        "vocabulary_size": size,
        "impacts": config.impacts,
        "passages_per_segment": config.passages_per_segment,
    }
    _run(specs, ledger, set(writer.finished()), arguments, config)
    return _commit(specs, files, config, ledger, writer)


def _stated_size(files: Sequence[str], config: ImportConfig) -> int:
    """Return the vocabulary's size where terms are ids: as configured, or as Parquet files state it."""
    if config.vocabulary_size is not None:
        return config.vocabulary_size
    sizes: set[Any] = set()
    for uri in files:
        if not is_parquet(uri):
            sizes.add(None)
            continue
        with open_seekable(uri) as stream:
            sizes.add(stated_metadata(pq.read_schema(stream)).get("vocabulary_size"))
    if len(sizes) != 1 or None in sizes:
        raise DataError(
            f"{', '.join(files[:3])}: nothing says how many terms the vectors are over; set vocabulary_size, or terms"
        )
    return int(sizes.pop())


def _specs(files: Sequence[str], rows: int) -> list[dict[str, Any]]:
    """Return the shards of all files, in order."""
    specs: list[dict[str, Any]] = []
    for number, uri in enumerate(files):
        shards: list[list[int]] = [[]]
        if is_parquet(uri):
            with open_seekable(uri) as stream:
                try:
                    file = pq.ParquetFile(stream)
                except (ValueError, OSError) as error:
                    raise DataError(f"{uri} is no readable Parquet file ({error}); fetch it again") from None
                shards = parquet_shards(file, uri, rows)
        specs += [{"name": f"{number:05d}-{shard:05d}", "uri": uri, "groups": groups} for shard, groups in enumerate(shards)]
    return specs


def _run(
    specs: Sequence[dict[str, Any]],
    ledger: ArtifactWriter,
    segments: set[str],
    arguments: dict[str, Any],
    config: ImportConfig,
) -> None:
    """Import the shards that are not finished; `segments` need not be written again."""
    finished = ledger.finished()
    ends = [part for name, part in finished.items() if name.endswith("-refused")]
    _check_limit(ledger.artifact, ends, config.max_bad_rows)
    kept: dict[str, list[str]] = {}
    for segment in segments:
        kept.setdefault(segment.rpartition("-")[0], []).append(segment)
    missing = [{**spec, "done": kept.get(spec["name"], [])} for spec in specs if spec["name"] not in finished]
    arguments = {**arguments, "max_bad_rows": config.max_bad_rows}
    with track("import", len(specs), "shards") as advance:
        advance(len(specs) - len(missing))
        for receipt in map_shards(missing, _ShardImporter, arguments, config.workers, "import"):
            ends.append(Part.from_json(receipt))
            _check_limit(ledger.artifact, ends, config.max_bad_rows)
            advance(1)


def _commit(
    specs: Sequence[dict[str, Any]], files: Sequence[str], config: ImportConfig, ledger: ArtifactWriter, writer: IndexWriter
) -> IndexVersion:
    finished = ledger.finished()
    shards = [str(spec["name"]) for spec in specs]
    passages = sum(finished[name].rows for name in shards)
    if not passages:
        raise DataError(f"{', '.join(files[:3])}: there is no vector that could be imported; check the files")
    if passages <= _MOST_CHECKED_FOR_SHARED_IDS:
        _check_shared_ids(shards, specs, finished, ledger.artifact)
    refused: Counter[str] = Counter()
    statistics: LexicalStatistics | None = None
    segments: list[str] = []
    for name in shards:
        refused.update({kind: int(count) for kind, count in finished[f"{name}-refused"].counters.items()})
        counted = LexicalStatistics.from_bytes(ledger.artifact.fetch(finished[name]).read_bytes())
        statistics = counted if statistics is None else statistics.merge(counted)
        segments += [f"{name}-{block:05d}" for block in range(int(finished[name].counters["segments"]))]
    assert statistics is not None
    logger.info("import %s: %d passages, %d rows refused", config.name, passages, sum(refused.values()))
    described = {"files": [uri.rpartition("/")[2] for uri in files], "passages": passages, "refused": dict(refused)}
    ledger.commit([part for name in shards for part in (name, f"{name}-ids", f"{name}-refused")], described)
    metadata = {
        "impacts": config.impacts,
        "import": {**described, "artifact": ledger.artifact.to_json()},
        "summary": index_summary(writer.entries(segments), statistics.document_frequency),
        "statistics": writer.put_statistics(statistics.to_bytes()).to_json(),
    }
    return writer.commit(segments, len(statistics.document_frequency), metadata)


def refused_rows(artifact: Artifact, parts: Sequence[Part]) -> Iterator[RefusedRow]:
    """Yield the rows that an import left out, from the parts of its artifact."""
    for part in parts:
        if part.name.endswith("-refused") and part.rows:
            for row in json.loads(artifact.fetch(part).read_bytes())["rows"]:
                yield RefusedRow(row["place"], row["kind"], row["reason"])


def _check_limit(artifact: Artifact, parts: Sequence[Part], max_bad_rows: int) -> None:
    """Raise DataError naming the first row beyond the limit."""
    found = sum(part.rows for part in parts if part.name.endswith("-refused"))
    if found > max_bad_rows:
        for count, row in enumerate(refused_rows(artifact, parts)):
            if count == max_bad_rows:
                raise _too_many(row, found, max_bad_rows)


def _too_many(row: RefusedRow, found: int, max_bad_rows: int) -> DataError:
    return DataError(
        f"{row.place}: {row.reason} ({found} such rows so far); correct the row, or raise max_bad_rows (now {max_bad_rows}) "
        "to leave such rows out and list them"
    )


def _check_shared_ids(
    shards: Sequence[str], specs: Sequence[dict[str, Any]], finished: Mapping[str, Part], artifact: Artifact
) -> None:
    shared = shared_hash([np.fromfile(artifact.fetch(finished[f"{name}-ids"]), dtype="<u8") for name in shards])
    if shared is not None:
        _, first, second = shared
        places = [f"{specs[each]['uri']} (shard {shards[each]})" for each in (first, second)]
        raise DataError(f"a passage id is in {places[0]} and in {places[1]}; remove one, or give them ids of their own")


class _ShardImporter:
    """Imports one shard; segments whose receipts exist are read again, for the rows' ids, but not written again."""

    def __init__(
        self,
        ledger: ArtifactWriter,
        writer: IndexWriter,
        terms: Mapping[str, int] | None,
        vocabulary_size: int,
        impacts: Impacts,
        passages_per_segment: int,
        max_bad_rows: int,
    ) -> None:
        self._ledger = ledger
        self._writer = writer
        self._terms = terms
        self._vocabulary_size = vocabulary_size
        self._impacts = impacts
        self._rows = passages_per_segment
        self._max_bad_rows = max_bad_rows

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        name, uri = str(spec["name"]), str(spec["uri"])
        reader = VectorReader(self._vocabulary_size, self._terms)
        done = set(spec["done"])
        frequency = np.zeros(self._vocabulary_size, dtype=np.int64)
        refused: list[RefusedRow] = []
        pending: list[tuple[list[str], SparseBatch]] = []
        passages = postings = segments = held = 0
        for ids, vectors, wrong in self._windows(reader, uri, spec["groups"]):
            refused += wrong
            if len(refused) > self._max_bad_rows:
                raise _too_many(refused[self._max_bad_rows], len(refused), self._max_bad_rows)
            frequency += np.bincount(vectors.term_ids, minlength=self._vocabulary_size)
            passages, postings = passages + len(ids), postings + vectors.nnz
            start = 0
            while start < len(ids):
                stop = min(len(ids), start + self._rows - held)
                pending.append((ids[start:stop], vectors.select(np.arange(start, stop))))
                held, start = held + stop - start, stop
                if held == self._rows:
                    self._put(f"{name}-{segments:05d}", pending, done)
                    pending, held, segments = [], 0, segments + 1
        if held:
            self._put(f"{name}-{segments:05d}", pending, done)
            segments += 1
        return self._put_end(name, uri, reader, refused, LexicalStatistics(frequency, passages, postings), segments)

    def _windows(
        self, reader: VectorReader, uri: str, groups: list[int]
    ) -> Iterator[tuple[list[str], SparseBatch, list[RefusedRow]]]:
        if is_parquet(uri):
            with open_seekable(uri) as stream:
                file = pq.ParquetFile(stream)
                if names_terms(file.schema_arrow) and self._terms is None:
                    raise DataError(f"{uri} names terms by strings; set terms to the vocabulary's file or tokenizer")
                yield from reader.parquet(file, uri, groups)
            return
        with open_input(uri) as stream:
            yield from reader.json_lines(stream, uri)

    def _put(self, name: str, pending: list[tuple[list[str], SparseBatch]], done: set[str]) -> None:
        if name in done:
            return
        ids = [passage_id for some, _ in pending for passage_id in some]
        vectors = SparseBatch.concatenate([batch for _, batch in pending])
        with tempfile.TemporaryDirectory(prefix="raydistill-segment-") as folder:
            path = Path(folder) / f"{name}.seg"
            write_segment(path, vectors, ids, self._impacts)
            counters = {MAX_IMPACT: float(vectors.weights.max(initial=0.0))}
            self._writer.put_segment(name, path, len(vectors), vectors.nnz, counters)

    def _put_end(
        self,
        name: str,
        uri: str,
        reader: VectorReader,
        refused: list[RefusedRow],
        statistics: LexicalStatistics,
        segments: int,
    ) -> dict[str, Any]:
        """Put the parts that say that the shard is done, the one it is known by last; return that of the refused rows."""
        rows = [{"place": row.place, "kind": row.kind, "reason": row.reason} for row in refused]
        found = json.dumps({"file": uri.rpartition("/")[2], "rows": rows}, indent=1, ensure_ascii=False).encode()
        kinds = Counter(row.kind for row in refused)
        self._ledger.put_part(f"{name}-ids", reader.seen.hashes().astype("<u8").tobytes(), ".u64", 0)
        end = self._ledger.put_part(f"{name}-refused", found, ".json", len(rows), kinds)
        counters = {"segments": segments}
        self._ledger.put_part(name, statistics.to_bytes(), ".safetensors", statistics.passages, counters)
        return end.to_json()
