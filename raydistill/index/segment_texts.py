"""The texts of the passages of some segments, memory-mapped; looked up by place in a segment and checked by id.

A segment that was built from a corpus holds the passages of the corpus part of its own name, in the same order; passages
that were added later come from corpora of their own, whose parts may have the same names. A Parquet part cannot be read at
one row, so it is rewritten once as an uncompressed Arrow file. Passages that are not where a corpus has them, as those of
segments that were merged, have no text here.

Disk: ids and texts of the parts, about their length in bytes, until the object goes. Memory: a batch of rows meanwhile.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
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
        corpora: committed, the newest first.
        segments: names of those that will be asked for.
    """

    def __init__(self, corpora: Sequence[Artifact], segments: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="raydistill-texts-")
        self._sources: dict[str, list[tuple[Artifact, Part]]] = {name: [] for name in segments}
        for corpus in corpora:
            for part in corpus.manifest().parts:
                if part.name in self._sources:
                    self._sources[part.name].append((corpus, part))
        self._tables: dict[str, list[pa.Table]] = {}
        self._lock = threading.Lock()

    def open(self) -> None:
        """Map everything now, instead of each part when a text of it is first asked for."""
        for name in self._sources:
            self._of_segment(name)

    def texts(self, segment: str, rows: NDArray[np.int64], passage_ids: Sequence[str]) -> list[str | None]:
        """Return the texts of passages by number within a segment; None where no corpus has such a passage there.

        Args:
            rows: int64 [C], any order.
            passage_ids: the C passages' ids, by which each text is checked.
        """
        texts: list[str | None] = [None] * len(rows)
        for table in self._of_segment(segment):
            places = [place for place, row in enumerate(rows.tolist()) if texts[place] is None and row < table.num_rows]
            found = table.take(pa.array(rows[places]))
            known = zip(places, found.column("passage_id").to_pylist(), found.column("text").to_pylist(), strict=True)
            for place, passage_id, text in known:
                if passage_id == passage_ids[place]:
                    texts[place] = text
        return texts

    def _of_segment(self, name: str) -> list[pa.Table]:
        with self._lock:
            if name not in self._tables:
                self._tables[name] = [
                    self._mapped(corpus.fetch(part), f"{number}-{name}")
                    for number, (corpus, part) in enumerate(self._sources[name])
                ]
            return self._tables[name]

    def _mapped(self, parquet: Path, name: str) -> pa.Table:
        path = Path(self._folder.name) / f"{name}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for passages in passage_batches(parquet, _ROWS_AT_A_TIME):
                ids = pa.array([passage.passage_id for passage in passages], pa.large_string())
                texts = pa.array([passage.full_text for passage in passages], pa.large_string())
                writer.write_batch(pa.record_batch([ids, texts], schema=_SCHEMA))
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
