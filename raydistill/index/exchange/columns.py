"""Sparse vectors as Parquet: columns id (string), term_ids (list<int32>, ascending) and weights (list<float32>).

The file's own metadata, key "raydistill", is JSON with vocabulary_size and what else the writer states. Weights are the
stored impacts decoded to float32: f32 and f16 impacts come back to the bit when they are stored in the same type.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.index.exchange.stored import Window

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("term_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("weights", pa.list_(pa.float32()), nullable=False),
    ]
)
METADATA_KEY = b"raydistill"


def write_vectors(path: Path, windows: Iterable[Window], stated: dict[str, Any]) -> int:
    """Write windows of passages as one Parquet file, a row group each; return the passages. One window is in memory."""
    schema = SCHEMA.with_metadata({METADATA_KEY: json.dumps(stated, sort_keys=True).encode()})
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for window in windows:
            offsets = pa.array(window.vectors.indptr.astype(np.int32))
            columns = [
                pa.array(window.ids, pa.string()),
                pa.ListArray.from_arrays(offsets, pa.array(window.vectors.term_ids)),
                pa.ListArray.from_arrays(offsets, pa.array(window.vectors.weights)),
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=schema))
            rows += len(window.ids)
    return rows


def stated_metadata(schema: pa.Schema) -> dict[str, Any]:
    """Return what the writer of a Parquet file stated of its vectors, {} for one that was not written here."""
    held = (schema.metadata or {}).get(METADATA_KEY)
    return dict(json.loads(held)) if held else {}
