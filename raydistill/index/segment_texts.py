"""The texts of the passages of some segments, memory-mapped; looked up by place in a segment and checked by id.

A segment that was built from a corpus holds the passages of the corpus part of its own name, in the same order. A Parquet
part cannot be read at one row, so it is rewritten once as an uncompressed Arrow file. Passages that are not where the
corpus has them, as after passages were replaced, have no text here.

Disk: ids and texts of the parts, about their length in bytes, until the object goes. Memory: a batch of rows meanwhile.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydistill.index.passage_files import passage_batches
from raydistill.storage.artifacts import Artifact, Part

_SCHEMA = pa.schema([pa.field(name, pa.large_string(), nullable=False) for name in ("passage_id", "text")])
_ROWS_AT_A_TIME = 2048


class SegmentTexts:
    """Texts (title and text) by segment name.

    Args:
        corpus: committed.
        parts: its passage parts by name: those that segments will be asked for.
    """

    def __init__(self, corpus: Artifact, parts: Mapping[str, Part]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="raydistill-texts-")
        self._corpus = corpus
        self._parts = dict(parts)
        self._tables: dict[str, pa.Table] = {}
        self._lock = threading.Lock()

    def open(self) -> None:
        """Map all parts now, instead of each when a text of it is first asked for."""
        for name in self._parts:
            self._table(name)

    def texts(self, segment: str, rows: NDArray[np.int64], passage_ids: Sequence[str]) -> list[str | None]:
        """Return the texts of passages by number within a segment; None where the corpus has no such passage there.

        Args:
            rows: int64 [C], any order.
            passage_ids: the C passages' ids, by which each text is checked.
        """
        table = self._table(segment) if segment in self._parts else None
        if table is None or (len(rows) and int(rows.max()) >= table.num_rows):
            return [None] * len(rows)
        found = table.take(pa.array(rows))
        ids, texts = found.column("passage_id").to_pylist(), found.column("text").to_pylist()
        return [text if known == wanted else None for known, wanted, text in zip(ids, passage_ids, texts, strict=True)]

    def _table(self, name: str) -> pa.Table:
        with self._lock:
            if name not in self._tables:
                self._tables[name] = self._mapped(self._corpus.fetch(self._parts[name]), name)
            return self._tables[name]

    def _mapped(self, parquet: Path, name: str) -> pa.Table:
        path = Path(self._folder.name) / f"{name}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for passages in passage_batches(parquet, _ROWS_AT_A_TIME):
                ids = pa.array([passage.passage_id for passage in passages], pa.large_string())
                texts = pa.array([passage.full_text for passage in passages], pa.large_string())
                writer.write_batch(pa.record_batch([ids, texts], schema=_SCHEMA))
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
