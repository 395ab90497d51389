"""A published index written for other engines, on Ray, to a folder or s3:// prefix of its own.

    {to}/plan.json                        what is written and how impacts are made whole numbers; put first
    {to}/vectors/…                        the passages; hand this folder to the engine
    {to}/receipts/{shard}.json            which shards are there: a repeated export goes on with what is missing
    {to}/mapping.json, collection.json    opensearch, qdrant: the body that creates the index
    {to}/export.json                      put last: the export is whole; its parts, and the measured overlap

Formats of passages (parquet, jsonl, anserini, opensearch, qdrant) are written in shards of `passages_per_file`, by as many
workers as are asked for; a worker holds one window of 4,096 passages and writes to a local file first. Formats of postings
(ciff, pisa) are one set of files, written by this process term by term: see `ciff` and `pisa` for their memory; an
interrupted one begins again. Local disk: a file of the export a worker.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raydistill.actor_pool import connect, map_shards
from raydistill.config import ExportConfig, RayConfig
from raydistill.config.exchange import BY_TERM, WHOLE_NUMBERS
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import DataError, StorageError
from raydistill.index.exchange.ciff import write_ciff
from raydistill.index.exchange.columns import write_vectors
from raydistill.index.exchange.lines import (
    LineWriter,
    anserini_lines,
    json_lines,
    opensearch_lines,
    opensearch_mapping,
    qdrant_collection,
    qdrant_lines,
)
from raydistill.index.exchange.pisa import SUFFIXES, write_pisa
from raydistill.index.exchange.quantise import Quantisation, passages_as_queries, quantisation, top_overlap
from raydistill.index.exchange.stored import Window, largest_impact, windows
from raydistill.index.exchange.terms import check_names, term_names
from raydistill.index.forward import document_share
from raydistill.index.publish import IndexVersion, SegmentEntry
from raydistill.index.search import open_searcher
from raydistill.progress import track
from raydistill.storage.artifacts import fingerprint
from raydistill.storage.hashing import sealed, sha256_hex, unsealed
from raydistill.storage.parts import Part, PartLedger
from raydistill.storage.store import ObjectStore, open_store

logger = logging.getLogger("raydistill")
_FORMAT_VERSION = 1
_PLAN, _EXPORT = "plan.json", "export.json"
_SUFFIX = {"parquet": ".parquet"}
# Characters that would not come through as part of a term.
_FORBIDDEN = {"anserini": " ", "ciff": " ", "pisa": " ", "opensearch": "."}


def export_index(
    version: IndexVersion, to: str, config: ExportConfig, ray: RayConfig, queries: SparseBatch | None = None
) -> dict[str, Any]:
    """Write an index version to `to` (s3://… or an absolute folder) and return what export.json says:

    format, fingerprint, index, passages, quantisation {"scale", "largest"} or None, overlap {"queries", "mean", "proven"} or
    None (see `quantise.top_overlap`), parts (see `Part`).

    Args:
        queries: by which the overlap is measured, over the index's vocabulary; None takes random passages' heaviest terms.

    A whole export is returned as it is; a half-done one goes on. Raises:
        DataError: `to` holds another export, terms have no usable names, or the format cannot hold the index.
        StorageError: the store cannot be read or written.
    """
    names = term_names(config.terms, version.vocabulary_size)
    forbidden = _FORBIDDEN.get(config.format)
    if config.terms is not None and forbidden is not None:
        check_names(names, document_share(version) > 0, forbidden, config.format)
    store = open_store(to)
    identity = fingerprint(
        "export",
        _FORMAT_VERSION,
        config,
        {"index": version.fingerprint, "version": str(version.version), "terms": sha256_hex("\n".join(names).encode())},
    )
    done = _document(store, _EXPORT, identity)
    if done is not None:
        return done
    connect(ray)
    quantised = _planned(store, identity, version, config)
    if config.format in BY_TERM:
        assert quantised is not None
        parts = _write_by_term(store, version, config, names, quantised)
    else:
        parts = _write_shards(to, version, config, names, quantised)
    _put_companion(store, config)
    overlap = None
    if quantised is not None and config.overlap_queries:
        searcher = open_searcher(version)
        asked = queries if queries is not None else passages_as_queries(searcher, config.overlap_queries)
        overlap = dataclasses.asdict(top_overlap(searcher, asked, quantised))
    document = {
        "format": config.format,
        "fingerprint": identity,
        "index": {"root": version.root, "name": version.name, "version": version.version},
        "passages": version.live,
        "quantisation": None if quantised is None else dataclasses.asdict(quantised),
        "overlap": overlap,
        "parts": [part.to_json() for part in parts],
    }
    store.put_if_absent(_EXPORT, sealed(document))
    return document


def _document(store: ObjectStore, key: str, identity: str) -> dict[str, Any] | None:
    """Return plan.json or export.json, None while there is none. Raises DataError when it is that of another export."""
    if store.info(key) is None:
        return None
    document = unsealed(store.read(key), f"{store.root}/{key}")
    if document.get("fingerprint") != identity:
        raise DataError(f"{store.root} holds an export of another index version or other settings; give a folder of its own")
    return document


def _planned(store: ObjectStore, identity: str, version: IndexVersion, config: ExportConfig) -> Quantisation | None:
    """Return the quantisation, that of the plan where there is one, and put the plan."""
    plan = _document(store, _PLAN, identity)
    if plan is None:
        quantised = None
        if config.format in WHOLE_NUMBERS:
            quantised = quantisation(0.0 if config.scale else _largest_impact(version, config), config.bits, config.scale)
        plan = {
            "fingerprint": identity,
            "format": config.format,
            "quantisation": None if quantised is None else dataclasses.asdict(quantised),
        }
        if not store.put_if_absent(_PLAN, sealed(plan)):
            return _planned(store, identity, version, config)
    return None if plan["quantisation"] is None else Quantisation(**plan["quantisation"])


def _largest_impact(version: IndexVersion, config: ExportConfig) -> float:
    told = largest_impact(version, [entry for entry in version.segments if entry.max_impact])
    specs = [{"segment": number} for number, entry in enumerate(version.segments) if not entry.max_impact]
    read = map_shards(specs, _LargestImpact, {"version": version}, config.workers, "export")
    return max([told, *(receipt["largest"] for receipt in read)])


def _write_by_term(
    store: ObjectStore, version: IndexVersion, config: ExportConfig, names: Sequence[str], quantised: Quantisation
) -> list[Part]:
    parts = []
    with (
        tempfile.TemporaryDirectory(prefix="raydistill-export-") as folder,
        track("export", version.live, "passages") as advance,
    ):
        base = Path(folder) / version.name
        if config.format == "ciff":
            told = f"raydistill index {version.name}, impacts * {quantised.scale:.9g} as whole numbers"
            paths = [base.with_name(f"{base.name}.ciff")]
            write_ciff(paths[0], version, names, quantised, told, advance)
        else:
            paths = [base.with_name(base.name + suffix) for suffix in SUFFIXES]
            write_pisa(base, version, names, quantised, advance)
        for path in paths:
            # Under their own names, which engines derive from one another.
            key, digest = f"vectors/{path.name}", sha256_hex(path)
            if not store.put_if_absent(key, path):
                raise StorageError(f"{store.root}/{key} exists with other bytes; delete it, or export to another folder")
            parts.append(Part(path.name, key, path.stat().st_size, digest, version.live))
    return parts


def _write_shards(
    to: str, version: IndexVersion, config: ExportConfig, names: Sequence[str], quantised: Quantisation | None
) -> list[Part]:
    ledger = PartLedger(to, "vectors", "receipts")
    finished = ledger.finished()
    specs = [
        {"name": f"{entry.name}-{block:05d}", "segment": number, "first": first, "stop": stop}
        for number, entry in enumerate(version.segments)
        for block, (first, stop) in enumerate(_blocks(entry, config.passages_per_file))
    ]
    missing = [spec for spec in specs if spec["name"] not in finished]
    arguments = {"ledger": ledger, "version": version, "config": config, "names": list(names), "quantised": quantised}
    with track("export", version.live, "passages") as advance:
        advance(sum(finished[str(spec["name"])].rows for spec in specs if spec["name"] in finished))
        for receipt in map_shards(missing, _ShardWriter, arguments, config.workers, "export"):
            part = Part.from_json(receipt)
            finished[part.name] = part
            advance(part.rows)
    return [finished[str(spec["name"])] for spec in specs]


def _blocks(entry: SegmentEntry, size: int) -> list[tuple[int, int]]:
    return [(first, min(first + size, entry.passages)) for first in range(0, entry.passages, size)]


def _put_companion(store: ObjectStore, config: ExportConfig) -> None:
    if config.format == "opensearch":
        store.put_if_absent("mapping.json", opensearch_mapping(config.field, config.field_type))
    elif config.format == "qdrant":
        store.put_if_absent("collection.json", qdrant_collection(config.field))


class _LargestImpact:
    """Tells the largest impact of one segment."""

    def __init__(self, version: IndexVersion) -> None:
        self._version = version

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        return {"largest": largest_impact(self._version, [self._version.segments[spec["segment"]]])}


class _ShardWriter:
    """Writes one file of passages and puts it."""

    def __init__(
        self,
        ledger: PartLedger,
        version: IndexVersion,
        config: ExportConfig,
        names: list[str],
        quantised: Quantisation | None,
    ) -> None:
        self._ledger = ledger
        self._version = version
        self._config = config
        self._lines = _line_writer(config, names, quantised)

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        entry = self._version.segments[spec["segment"]]
        suffix = _SUFFIX.get(self._config.format, ".jsonl")
        with tempfile.TemporaryDirectory(prefix="raydistill-export-") as folder:
            path = Path(folder) / f"shard{suffix}"
            rows = self._write(path, windows(self._version, entry, spec["first"], spec["stop"]))
            return self._ledger.put(spec["name"], path, suffix, rows, {}).to_json()

    def _write(self, path: Path, passages: Iterator[Window]) -> int:
        if self._lines is None:
            stated = {"vocabulary_size": self._version.vocabulary_size, "index": self._version.fingerprint}
            return write_vectors(path, passages, stated)
        rows = 0
        with path.open("wb") as file:
            for window in passages:
                file.write(self._lines(window))
                rows += len(window.ids)
        return rows


def _line_writer(config: ExportConfig, names: Sequence[str], quantised: Quantisation | None) -> LineWriter | None:
    """Return the writer of a text format, None for Parquet."""
    if config.format == "anserini":
        assert quantised is not None
        return anserini_lines(names, quantised)
    if config.format == "jsonl":
        return json_lines(names)
    if config.format == "opensearch":
        return opensearch_lines(names, config.field)
    if config.format == "qdrant":
        return qdrant_lines(config.field)
    return None
