"""Canonical corpus files: Parquet with columns passage_id, title, text. Writing them under a memory bound, reading them
in batches, and telling repeated ids. Which files make up a corpus is decided in `corpus`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydistill.conversations.records import Passage

SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("passage_id", "title", "text")])
_ROWS_AT_A_TIME = 8192


class PassageFileWriter:
    """Writes one Parquet file row by row; holds one row group of passages in memory. Equal input gives equal bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._pending: list[Passage] = []
        self._file = pq.ParquetWriter(path, SCHEMA, compression="zstd")

    def add(self, passage: Passage) -> None:
        """Append one passage."""
        self._pending.append(passage)
        self.rows += 1
        if len(self._pending) == _ROWS_AT_A_TIME:
            self._flush()

    def close(self) -> None:
        """Write what is pending and the footer."""
        if self._pending:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        columns = {name: [getattr(passage, name) for passage in self._pending] for name in SCHEMA.names}
        self._file.write_table(pa.table(columns, schema=SCHEMA))
        self._pending.clear()


def passage_batches(path: Path, rows: int = _ROWS_AT_A_TIME) -> Iterator[list[Passage]]:
    """Yield the passages of a file in order, at most `rows` at a time; only one batch is held in memory."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=rows, columns=SCHEMA.names):
            columns = [batch.column(name).to_pylist() for name in ("passage_id", "text", "title")]
            yield [Passage(*fields) for fields in zip(*columns, strict=True)]


def id_hash(passage_id: str) -> int:
    """Return 64 bits of a BLAKE2b hash of an id."""
    return int.from_bytes(hashlib.blake2b(passage_id.encode(), digest_size=8).digest(), "little")


class SeenIds:
    """The ids of one input file, as 64-bit hashes: 8 bytes an id, and more for the newest 65,536.

    Two different ids of a file of 25 million share a hash with a probability of 2 in 100,000; the later one would then
    be reported as a repetition.
    """

    _RECENT = 65_536

    def __init__(self) -> None:
        self._sorted: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self._recent: set[int] = set()

    def add(self, passage_id: str) -> bool:
        """Remember an id; False when it is there already."""
        wanted = id_hash(passage_id)
        if wanted in self._recent or self._holds(wanted):
            return False
        self._recent.add(wanted)
        if len(self._recent) == self._RECENT:
            self._sorted = self.hashes()
            self._recent.clear()
        return True

    def hashes(self) -> NDArray[np.uint64]:
        """Return the hashes of all ids, uint64 [ids], ascending."""
        recent = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
        return np.sort(np.concatenate([self._sorted, recent]), kind="stable")

    def _holds(self, wanted: int) -> bool:
        place = int(np.searchsorted(self._sorted, np.uint64(wanted)))
        return place < len(self._sorted) and int(self._sorted[place]) == wanted


def shared_hash(files: Sequence[NDArray[np.uint64]]) -> tuple[int, int, int] | None:
    """Return (hash, first file, second file) of an id hash that two files hold, or None.

    Args:
        files: ascending uint64 hashes without repetition, one array a file. Memory: about 28 bytes a hash.
    """
    hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *files])
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    repeated = np.nonzero(ordered[1:] == ordered[:-1])[0]
    if not len(repeated):
        return None
    ends = np.cumsum([len(file) for file in files])
    first, second = np.searchsorted(ends, order[[repeated[0], repeated[0] + 1]], side="right").tolist()
    return int(ordered[repeated[0]]), first, second
