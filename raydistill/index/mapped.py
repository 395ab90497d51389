"""Tables in memory-mapped files that nobody else sees: written, mapped and unlinked at once.

So the disk gets its space back when the table goes, however its process ends; actors and readers are often killed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa


def mapped_table(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Return the batches as one mapped table. Memory: one batch; disk: all of them, uncompressed, while it is held."""
    with tempfile.TemporaryDirectory(prefix="raydistill-mapped-") as folder:
        path = Path(folder) / "table.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
