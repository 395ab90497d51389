"""The texts of the passages of some segments, memory-mapped; looked up by place in a segment and checked by id.

A segment that was built from a corpus holds the passages of the corpus part of its own name, in the same order; passages
that were added later come from corpora of their own, whose parts may have the same names. A Parquet part cannot be read at
one row, so it is rewritten once as an uncompressed Arrow file. The passages of a segment that compaction made are looked up
by their ids among the parts of those that it was made of, in the newest corpus that has them. What is neither here nor there
has no text.

Disk: ids and texts of the parts, about their length in bytes, until the object goes. Memory: a batch of rows meanwhile; for
segments that were merged 16 bytes a passage of their parts.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydistill.index.mapped import mapped_table
from raydistill.index.passage_files import passage_batches
from raydistill.storage.artifacts import Artifact, Part

_SCHEMA = pa.schema([pa.field(name, pa.large_string(), nullable=False) for name in ("passage_id", "text")])
_ROWS_AT_A_TIME = 2048


class SegmentTexts:
    """Texts (title and text) by segment name.

    Args:
        corpora: committed, the newest first.
        segments: names of those that will be asked for.
        merged: segment name -> names of the segments that it was made of (see `compaction.MERGED`).
    """

    def __init__(
        self, corpora: Sequence[Artifact], segments: Sequence[str], merged: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._merged = {name: tuple(origins) for name, origins in (merged or {}).items() if name in segments}
        parts = {origin for name in segments for origin in self._merged.get(name, (name,))}
        self._sources: dict[str, list[tuple[int, Artifact, Part]]] = {name: [] for name in sorted(parts)}
        for age, corpus in enumerate(corpora):
            for part in corpus.manifest().parts:
                if part.name in self._sources:
                    self._sources[part.name].append((age, corpus, part))
        self._tables: dict[str, list[pa.Table]] = {}
        self._ids: dict[str, _Ids] = {}
        self._lock = threading.Lock()

    def open(self) -> None:
        """Map everything now, instead of each part when a text of it is first asked for."""
        for name in self._sources:
            self._of_part(name)
        for name in self._merged:
            self._of_merged(name)

    def texts(self, segment: str, rows: NDArray[np.int64], passage_ids: Sequence[str]) -> list[str | None]:
        """Return the texts of passages by number within a segment; None where no corpus has such a passage there.

        Args:
            rows: int64 [C], any order.
            passage_ids: the C passages' ids, by which each text is checked.
        """
        if segment in self._merged:
            return self._of_merged(segment).texts(passage_ids)
        texts: list[str | None] = [None] * len(rows)
        for table in self._of_part(segment):
            places = [place for place, row in enumerate(rows.tolist()) if texts[place] is None and row < table.num_rows]
            found = table.take(pa.array(rows[places]))
            known = zip(places, found.column("passage_id").to_pylist(), found.column("text").to_pylist(), strict=True)
            for place, passage_id, text in known:
                if passage_id == passage_ids[place]:
                    texts[place] = text
        return texts

    def _of_merged(self, name: str) -> _Ids:
        tables = []
        for origin in self._merged[name]:
            ages = [age for age, _, _ in self._sources.get(origin, [])]
            tables += list(zip(ages, self._of_part(origin), strict=True))
        # Of a passage that was replaced the newest text counts, whichever of the merged segments it is in.
        tables.sort(key=lambda pair: pair[0])
        with self._lock:
            if name not in self._ids:
                self._ids[name] = _Ids([table for _, table in tables])
            return self._ids[name]

    def _of_part(self, name: str) -> list[pa.Table]:
        with self._lock:
            if name not in self._tables:
                self._tables[name] = [
                    mapped_table(_SCHEMA, _batches(corpus.fetch(part))) for _, corpus, part in self._sources.get(name, [])
                ]
            return self._tables[name]


def _batches(parquet: Path) -> Iterator[pa.RecordBatch]:
    for passages in passage_batches(parquet, _ROWS_AT_A_TIME):
        ids = pa.array([passage.passage_id for passage in passages], pa.large_string())
        texts = pa.array([passage.full_text for passage in passages], pa.large_string())
        yield pa.record_batch([ids, texts], schema=_SCHEMA)


class _Ids:
    """Texts of some tables by passage id; of several with one id the first table's counts."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self._tables = tuple(tables)
        self._starts = np.cumsum([0, *(table.num_rows for table in tables)])
        keys = np.empty(int(self._starts[-1]), dtype=np.uint64)
        for start, table in zip(self._starts.tolist(), tables, strict=False):
            for batch in table.column("passage_id").iterchunks():
                keys[start : start + len(batch)] = [_key(passage_id) for passage_id in batch.to_pylist()]
                start += len(batch)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def texts(self, passage_ids: Sequence[str]) -> list[str | None]:
        """Return the texts of passages, None for ids that no table has."""
        return [self._text(passage_id) for passage_id in passage_ids]

    def _text(self, passage_id: str) -> str | None:
        wanted = np.uint64(_key(passage_id))
        place = int(np.searchsorted(self._keys, wanted))
        while place < len(self._keys) and self._keys[place] == wanted:
            row = int(self._order[place])
            table = int(np.searchsorted(self._starts, row, side="right")) - 1
            found = self._tables[table].slice(row - int(self._starts[table]), 1)
            if found.column("passage_id")[0].as_py() == passage_id:
                return str(found.column("text")[0].as_py())
            place += 1
        return None


def _key(passage_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(passage_id.encode(), digest_size=8).digest(), "little")
