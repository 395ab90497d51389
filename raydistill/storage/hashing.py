"""SHA-256 of content, canonical JSON and sealed JSON documents. Knows nothing of stores or artifacts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydistill.errors import CorruptObjectError, StorageError

_BLOCK = 1 << 20
_SEAL = "seal"


def sha256_hex(content: bytes | memoryview | Path) -> str:
    """Return the SHA-256 of bytes or of a file's content, 64 hex characters; a file is read in blocks."""
    if isinstance(content, Path):
        return range_sha256(content, 0, content.stat().st_size)
    return hashlib.sha256(content).hexdigest()


def range_sha256(path: Path, start: int, size: int) -> str:
    """Return the SHA-256 of `size` bytes of a file from `start` on (or of those there are), 64 hex characters."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(start)
        while block := stream.read(min(_BLOCK, size)):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def content_size(content: bytes | Path) -> int:
    """Return the length of bytes or of a file."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _plain_scalar(value: object) -> Any:
    """Return the Python number behind a NumPy scalar, so that counters may hold either."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        return item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: keys sorted, no spaces, ASCII, no NaN. Raises StorageError for other types."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain_scalar)
    except (TypeError, ValueError) as error:
        raise StorageError(
            f"A value cannot be stored as JSON ({error}); use strings, finite numbers, lists and dictionaries"
        ) from None


def sealed(document: Mapping[str, Any]) -> bytes:
    """Return the document as readable JSON bytes with a field `seal`, the SHA-256 of its canonical form."""
    plain = json.loads(canonical_json(dict(document)))
    plain[_SEAL] = sha256_hex(canonical_json(plain).encode())
    return (json.dumps(plain, sort_keys=True, indent=1) + "\n").encode()


def unsealed(content: bytes, uri: str) -> dict[str, Any]:
    """Return the document that `sealed` wrote. Raises CorruptObjectError naming the URI when it is not what was sealed, to
    the byte: a flipped bit that JSON would read alike (e for E) is damage too."""
    try:
        document = json.loads(content)
        seal = document.pop(_SEAL)
    except (ValueError, KeyError, AttributeError):
        raise CorruptObjectError(
            f"{uri} is no document of raydistill or is damaged; delete it and run the stage again"
        ) from None
    if seal != sha256_hex(canonical_json(document).encode()) or content != sealed(document):
        raise CorruptObjectError(f"{uri} was changed after it was written; delete it and run the stage again")
    return dict(document)
