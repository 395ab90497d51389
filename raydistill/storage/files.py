"""Input files that users bring: expanding patterns, streaming with decompression, fingerprints. Local paths, file:// and
s3:// alike. Outputs never go this way; they are artifacts.
"""

from __future__ import annotations

import bz2
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, cast

from raydistill.errors import StorageError
from raydistill.storage.hashing import canonical_json, sha256_hex
from raydistill.storage.local import absolute_path

_BUFFER = 1 << 20


def input_files(patterns: Sequence[str]) -> list[str]:
    """Return the files that the patterns name, in the order of the patterns, each pattern's matches sorted, none twice.

    A pattern is an absolute path, file:// or s3:// URI; a `*` in its last component (a trailing one, usually) stands for
    any characters but "/". Hidden files do not match. Raises StorageError for a pattern that matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        folder, _, name = pattern.rpartition("/")
        if "*" in folder:
            raise StorageError(f"{pattern}: a * may only stand in the last component; name the folders")
        matches = _s3_matches(pattern) if pattern.startswith("s3://") else _local_matches(pattern, name)
        if not matches:
            raise StorageError(f"{pattern}: no such file; check the path (folders need a trailing /*)")
        found.update(dict.fromkeys(matches))
    return list(found)


def _regex(name: str) -> re.Pattern[str]:
    return re.compile("[^/]*".join(re.escape(piece) for piece in name.split("*")), re.DOTALL)


def _local_matches(pattern: str, name: str) -> list[str]:
    path = absolute_path(pattern)
    if "*" not in name:
        return [pattern] if path.is_file() else []
    regex = _regex(name)
    folder = pattern[: len(pattern) - len(name)]
    try:
        with os.scandir(path.parent) as scan:
            names = [entry.name for entry in scan if entry.is_file() and not entry.name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(
            f"{pattern} could not be listed ({error.strerror}); check the path and its permissions"
        ) from error
    return [folder + found for found in sorted(names) if regex.fullmatch(found)]


def _s3_matches(pattern: str) -> list[str]:
    from raydistill.storage.s3 import S3Store

    bucket, key = _bucket_and_key(pattern)
    store = S3Store(f"s3://{bucket}")
    if "*" not in key:
        return [pattern] if store.info(key) else []
    regex = _regex(key)
    folder = len(key.rpartition("/")[0])
    return [
        f"s3://{bucket}/{info.key}"
        for info in store.list(key.partition("*")[0])
        if regex.fullmatch(info.key) and not info.key.endswith("/") and not info.key[folder:].lstrip("/").startswith(".")
    ]


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri[len("s3://") :].partition("/")
    if not bucket or not key:
        raise StorageError(f"{uri} names no object; write s3://bucket/key")
    return bucket, key


class _Decompressed(io.RawIOBase):
    """Bytes of a decompressing stream, its errors turned into StorageErrors that name the file."""

    def __init__(self, source: BinaryIO, uri: str) -> None:
        self._source = source
        self._uri = uri

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        try:
            content = self._source.read(len(view))
        except (OSError, EOFError, zlib.error) as error:
            raise StorageError(
                f"{self._uri} cannot be decompressed ({error}); it is damaged or cut short: fetch it again"
            ) from error
        view[: len(content)] = content
        return len(content)


@contextmanager
def open_input(uri: str) -> Iterator[BinaryIO]:
    """Open a file for reading from its beginning, decompressed by suffix (.gz, .bz2, .zst); nothing is held whole in memory.

    Raises StorageError when it is absent, unreadable, or (while reading) damaged.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(_open_raw(uri))
        if uri.endswith(".gz"):
            source = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=raw, mode="rb")))
        elif uri.endswith(".bz2"):
            source = cast(BinaryIO, stack.enter_context(bz2.BZ2File(raw)))
        elif uri.endswith(".zst"):
            source = stack.enter_context(_zstandard(raw))
        else:
            yield raw
            return
        yield cast(BinaryIO, stack.enter_context(io.BufferedReader(_Decompressed(source, uri), _BUFFER)))


@contextmanager
def _zstandard(raw: BinaryIO) -> Iterator[BinaryIO]:
    import pyarrow

    with pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd") as stream:
        yield cast(BinaryIO, stream)


def _open_raw(uri: str) -> BinaryIO:
    if uri.startswith("s3://"):
        from raydistill.storage.s3 import S3Store

        bucket, key = _bucket_and_key(uri)
        return S3Store(f"s3://{bucket}").open(key)
    try:
        return absolute_path(uri).open("rb", buffering=_BUFFER)
    except OSError as error:
        raise StorageError(f"{uri} cannot be opened ({error.strerror}); check the path and its permissions") from error


@contextmanager
def open_seekable(uri: str) -> Iterator[BinaryIO]:
    """Open a file for reading at random places, as stored; of an s3:// object only what is read is fetched.

    Raises StorageError when it is absent or unreadable.
    """
    if uri.startswith("s3://"):
        with io.BufferedReader(_S3Ranges(uri), _BUFFER) as stream:
            yield cast(BinaryIO, stream)
        return
    with _open_raw(uri) as raw:
        yield raw


class _S3Ranges(io.RawIOBase):
    """An S3 object read range by range."""

    def __init__(self, uri: str) -> None:
        from raydistill.storage.s3 import S3Store

        self._bucket, self._key = _bucket_and_key(uri)
        info = S3Store(f"s3://{self._bucket}").info(self._key)
        if info is None:
            raise StorageError(f"{uri}: no such object; check the path")
        self._size = info.size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: object) -> int:
        from raydistill.storage.s3 import S3Reader

        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        wanted = min(len(view), self._size - self._position)
        if wanted <= 0:
            return 0
        with S3Reader(self._bucket, self._key, self._position, wanted) as part:
            content = part.readall()
        view[:wanted] = content
        self._position += wanted
        return wanted


def read_input(uri: str) -> bytes:
    """Return a file's whole content, decompressed; for small files only. Raises StorageError like `open_input`."""
    with open_input(uri) as stream:
        return stream.read()


def input_fingerprint(uris: Sequence[str]) -> str:
    """Return a SHA-256 (64 hex characters) over the files in this order: their names without folders, and the SHA-256 of
    their stored bytes (local) or their size and etag (s3). Raises StorageError for a file that is absent."""
    return sha256_hex(canonical_json([_identity(uri) for uri in uris]).encode())


def _identity(uri: str) -> list[str | int]:
    name = uri.rpartition("/")[2]
    if uri.startswith("s3://"):
        from raydistill.storage.s3 import S3Store

        bucket, key = _bucket_and_key(uri)
        info = S3Store(f"s3://{bucket}").info(key)
        if info is None:
            raise StorageError(f"{uri}: no such object; check the path")
        return [name, info.size, info.etag]
    try:
        path = absolute_path(uri)
        return [name, path.stat().st_size, sha256_hex(path)]
    except OSError as error:
        raise StorageError(f"{uri} cannot be read ({error.strerror}); check the path and its permissions") from error
