"""Passages' texts by number, for training that reads them in random order: memory-mapped, fetched part by part.

Numbers are those of an index of the same corpus: passages are counted through its parts in order. A Parquet part cannot
be read at one row, so the first use of a part rewrites it as an uncompressed Arrow file (see `mapped`).

Memory: one batch of rows while a part is rewritten; texts are mapped. Disk: the texts of the parts that were used, about
their length in bytes; every process that reads them has its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydistill.errors import DataError
from raydistill.index.mapped import mapped_table
from raydistill.index.passage_files import passage_batches
from raydistill.storage.artifacts import Artifact, Part

_SCHEMA = pa.schema([pa.field("text", pa.large_string(), nullable=False)])
_ROWS_AT_A_TIME = 2048


class PassageTexts:
    """The full texts (title and text) of the passages of a corpus.

    Args:
        corpus: the artifact.
        parts: its passage parts, in corpus order.
    """

    def __init__(self, corpus: Artifact, parts: Sequence[Part]) -> None:
        self._corpus = corpus
        self._parts = tuple(parts)
        self._ends = np.cumsum([part.rows for part in self._parts], dtype=np.int64)
        self._columns: dict[int, pa.ChunkedArray] = {}

    def __reduce__(self) -> tuple[type[PassageTexts], tuple[Artifact, tuple[Part, ...]]]:
        # Mappings do not travel: another process rewrites for itself what it reads.
        return type(self), (self._corpus, self._parts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def texts(self, numbers: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Return the texts of passages, in the given order, repeats allowed. Raises DataError for an unknown number."""
        wanted = np.asarray(numbers, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise DataError(
                f"passage number {int(wanted.max())} is not in {self._corpus.uri}, which has {len(self)} passages; the "
                "training examples were made from another corpus"
            )
        owners = np.searchsorted(self._ends, wanted, side="right")
        found: list[str] = [""] * len(wanted)
        for owner in np.unique(owners).tolist():
            places = np.flatnonzero(owners == owner)
            first = int(self._ends[owner]) - self._parts[owner].rows
            rows = self._column(owner).take(pa.array(wanted[places] - first))
            for place, text in zip(places.tolist(), rows.to_pylist(), strict=True):
                found[place] = text
        return found

    def _column(self, owner: int) -> pa.ChunkedArray:
        if owner not in self._columns:
            batches = (
                pa.record_batch([pa.array([each.full_text for each in passages], pa.large_string())], schema=_SCHEMA)
                for passages in passage_batches(self._corpus.fetch(self._parts[owner]), _ROWS_AT_A_TIME)
            )
            self._columns[owner] = mapped_table(_SCHEMA, batches).column("text")
        return self._columns[owner]
