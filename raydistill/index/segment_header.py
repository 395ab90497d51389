"""The header of a segment file: what arrays it holds, where, and their SHA-256. The format is described in `segment`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raydistill.errors import CorruptObjectError
from raydistill.storage.hashing import sha256_hex
from raydistill.storage.parts import HEAD_BYTES

Impacts = Literal["f32", "f16", "u8"]

FORMAT = "raydistill-segment"
FORMAT_VERSION = 3
ARRAYS = (
    "row_offsets",
    "term_highs",
    "id_offsets",
    "term_maxima",
    "document_frequency",
    "entry_counts",
    "block_terms",
    "id_order",
    "impacts",
    "posting_impacts",
    "term_lows",
    "gap_lows",
    "gap_extras",
    "gap_bits",
    "block_maxima",
    "id_bytes",
)
_DTYPES = {"I64": "<i8", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "F32": "<f4", "F16": "<f2"}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_NEEDED_METADATA = ("passages", "postings", "vocabulary_size", "impacts", "scale", "block")


@dataclass(frozen=True)
class Section:
    """Where an array lies in its file.

    Attributes:
        start, size: bytes from the beginning of the file. sha256: of those bytes.
        dtype, shape: of the array.
    """

    start: int
    size: int
    sha256: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def view(self, content: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the array in the section's bytes (uint8 [size], aligned to its items), without a copy."""
        return content.view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class SegmentHeader:
    """What a segment says of itself.

    Attributes:
        passages, postings, vocabulary_size: P, N, V of the format.
        impacts: stored type. scale: impact = stored value * scale. block: passages a block.
        sections: by array name.
        file_size: bytes of the whole file.
    """

    passages: int
    postings: int
    vocabulary_size: int
    impacts: Impacts
    scale: float
    block: int
    sections: Mapping[str, Section]
    file_size: int


def header_bytes(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """Return the beginning of a segment file and the arrays' names in the order in which they must follow.

    Arrays go widest first, then in the order of `ARRAYS`; they must be little-endian and contiguous.
    """
    names = sorted(ARRAYS, key=lambda name: -arrays[name].dtype.itemsize)
    digests = {f"sha256.{name}": sha256_hex(arrays[name].view(np.uint8).data) for name in names}
    header: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "format_version": str(FORMAT_VERSION), **metadata, **digests}
    }
    end = 0
    for name in names:
        array = arrays[name]
        offsets = [end, end + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, names


def read_header(head: bytes, path: Path) -> SegmentHeader:
    """Return the header at the beginning of a segment file.

    Args:
        head: the first HEAD_BYTES of the file, or all of it.
        path: named in errors.

    Raises:
        CorruptObjectError: it is damaged, no segment, or of an unknown version.
    """
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8:
        raise corrupt(path, f"it has {len(head)} bytes")
    if 8 + length > min(HEAD_BYTES, len(head)):
        raise corrupt(path, f"its header claims {length} bytes")
    try:
        header = json.loads(head[8 : 8 + length])
        metadata = header.pop("__metadata__")
        found, version = metadata.get("format"), metadata.get("format_version")
        ends = [entry["data_offsets"][1] for entry in header.values()]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise corrupt(path, "its header cannot be read") from None
    if found != FORMAT:
        raise corrupt(path, f"it calls itself {found!r}, not {FORMAT!r}")
    if version != str(FORMAT_VERSION):
        raise CorruptObjectError(
            f"segment {path}: this release reads format version {FORMAT_VERSION}, not version {version!r}. "
            "Rebuild the index (run the index stage again) or use the release that wrote it"
        )
    needed = [*_NEEDED_METADATA, *(f"sha256.{name}" for name in ARRAYS)]
    missing = [name for name in needed if name not in metadata] + [name for name in ARRAYS if name not in header]
    if missing:
        raise corrupt(path, f"it lacks {', '.join(missing)}")
    try:
        sections = {name: _section(header[name], metadata[f"sha256.{name}"], 8 + length) for name in ARRAYS}
    except (ValueError, KeyError, TypeError):
        raise corrupt(path, "its arrays do not match their description") from None
    return SegmentHeader(
        passages=int(metadata["passages"]),
        postings=int(metadata["postings"]),
        vocabulary_size=int(metadata["vocabulary_size"]),
        impacts=metadata["impacts"],
        scale=float(metadata["scale"]),
        block=int(metadata["block"]),
        sections=sections,
        file_size=8 + length + max(ends),
    )


def _section(entry: dict[str, Any], sha256: str, data: int) -> Section:
    start, stop = entry["data_offsets"]
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    if start < 0 or stop - start != dtype.itemsize * math.prod(entry["shape"]) or start % dtype.itemsize:
        raise ValueError("offsets")
    return Section(data + start, stop - start, sha256, dtype, tuple(entry["shape"]))


def corrupt(path: Path, why: str) -> CorruptObjectError:
    """Return the error for a damaged segment file."""
    return CorruptObjectError(
        f"segment {path} is damaged or not a segment: {why}; delete the local copy so that it is fetched again, "
        "or rebuild the index"
    )
