"""Local copies of immutable objects: files named by their SHA-256 in a folder of bounded size, shared by all processes
of a machine. Objects of a `LocalStore` are not copied: their own path is handed out once the hash was verified.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from raydistill.errors import CorruptObjectError, StorageError
from raydistill.storage.hashing import range_sha256, sha256_hex
from raydistill.storage.local import LocalStore
from raydistill.storage.store import ObjectStore

_DEFAULT_BYTES = 50_000_000_000
_ABANDONED_SECONDS = 3600.0
"""Age after which a temporary file is taken to be left by a process that died."""

_verified: dict[tuple[str, str], tuple[int, int, int]] = {}
"""(path, sha256) -> (inode, mtime in ns, size) of the files whose content, or a section of it, this process has verified."""


class LocalCache:
    """Files by hash with least-recently-used eviction.

    Args:
        directory: made when needed; may be shared by any number of processes of this machine.
        max_bytes: bound on the files' sizes together. What was fetched in the last `grace_seconds` is never evicted, so
            that a path stays valid until its caller has opened it; an open or mapped file survives eviction anyway.
        grace_seconds: see above.
    """

    def __init__(self, directory: Path, max_bytes: int, grace_seconds: float = 300.0) -> None:
        self.directory = Path(directory)
        self.max_bytes = max_bytes
        self.grace_seconds = grace_seconds
        self._unscanned = 0
        """Bytes this process may still add before it looks at the folder again."""

    def fetch(self, store: ObjectStore, key: str, size: int, sha256: str) -> Path:
        """Return a local file with the object's content; never write to it.

        The content is verified when this process first uses it. Raises CorruptObjectError naming the object when the
        store's bytes are not the expected ones, StorageError when it is absent or the disk is full.
        """
        if isinstance(store, LocalStore):
            path = store.path(key)
            if not path.is_file():
                raise _missing(store, key)
            if not _is_verified(path, size, sha256):
                raise _corrupt(store, key)
            return path
        return self._kept(store, key, size, sha256, lambda path: store.download(key, path))

    def fetch_range(self, store: ObjectStore, key: str, start: int, size: int, sha256: str) -> tuple[Path, int]:
        """Return a local file that holds `size` bytes (> 0) of the object from `start` on, and where in it they begin.

        Only these bytes are fetched and verified; see `fetch` otherwise.
        """
        if not isinstance(store, LocalStore):
            return self._kept(store, key, size, sha256, lambda path: store.download_range(key, start, size, path)), 0
        path = store.path(key)
        if not path.is_file():
            raise _missing(store, key)
        if not _is_verified(path, size, sha256, start):
            raise _corrupt(store, key)
        return path, start

    def _kept(self, store: ObjectStore, key: str, size: int, sha256: str, download: Callable[[Path], None]) -> Path:
        path = self.directory / sha256[:2] / sha256
        try:
            return self._fetched(store, key, size, sha256, path, download)
        except OSError as error:
            advice = "the disk is full: free space, " if error.errno == errno.ENOSPC else "check the permissions, "
            raise StorageError(
                f"{path} could not be written ({error.strerror or error}); {advice}"
                "or set RAYDISTILL_CACHE_DIR to another folder and RAYDISTILL_CACHE_BYTES to a bound that fits"
            ) from error

    def _fetched(
        self, store: ObjectStore, key: str, size: int, sha256: str, path: Path, download: Callable[[Path], None]
    ) -> Path:
        if _touch(path) and _is_verified(path, size, sha256):
            return path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.parent / ".lock"):
            # Another process may have downloaded it while this one waited.
            if _touch(path) and _is_verified(path, size, sha256):
                return path
            self._make_room(size)
            temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
            try:
                download(temporary)
                if temporary.stat().st_size != size or sha256_hex(temporary) != sha256:
                    raise _corrupt(store, key)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            status = path.stat()
            _verified[str(path), sha256] = (status.st_ino, status.st_mtime_ns, status.st_size)
        return path

    def _make_room(self, size: int) -> None:
        """Delete the files unused for longest until `size` more bytes fit, sparing those in their grace period."""
        if size <= self._unscanned:
            self._unscanned -= size
            return
        now = time.time()
        files: list[tuple[float, int, Path]] = []
        for path in self.directory.glob("??/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.name == ".lock":
                    continue
                if path.name.endswith(".tmp"):
                    if now - status.st_mtime > _ABANDONED_SECONDS:
                        path.unlink(missing_ok=True)
                    continue
                files.append((status.st_atime, status.st_size, path))
        total = sum(file_size for _, file_size, _ in files)
        for used, file_size, path in sorted(files):
            if total + size <= self.max_bytes or now - used < self.grace_seconds:
                break
            if _was_used_since(path, used):
                continue
            path.unlink(missing_ok=True)
            total -= file_size
        # Looking costs a stat a file. A sixteenth of the room leaves some for the other processes that add meanwhile.
        self._unscanned = max(0, self.max_bytes - total - size) // 16


def default_cache() -> LocalCache:
    """Return this machine's cache: folder $RAYDISTILL_CACHE_DIR (default: one per user in the temporary directory), at
    most $RAYDISTILL_CACHE_BYTES bytes (default 50 GB). Raises StorageError when the bound is no number."""
    bound = os.environ.get("RAYDISTILL_CACHE_BYTES", str(_DEFAULT_BYTES))
    default = os.path.join(tempfile.gettempdir(), f"raydistill-cache-{os.getuid()}")
    return _cache(os.environ.get("RAYDISTILL_CACHE_DIR") or default, bound)


@lru_cache(maxsize=8)
def _cache(directory: str, bound: str) -> LocalCache:
    try:
        max_bytes = int(float(bound))
    except (ValueError, OverflowError):
        raise StorageError(f"RAYDISTILL_CACHE_BYTES is {bound!r}; set it to a number of bytes, for instance 50e9") from None
    return LocalCache(Path(directory), max_bytes)


def _is_verified(path: Path, size: int, sha256: str, start: int | None = None) -> bool:
    """Return whether the file, or `size` bytes of it from `start` on, have this content.

    Hashed once a process, and again if the file was changed since.
    """
    status = path.stat()
    mark = (status.st_ino, status.st_mtime_ns, status.st_size)
    if _verified.get((str(path), sha256)) == mark:
        return True
    if start is None and status.st_size != size:
        return False
    if range_sha256(path, start or 0, size) != sha256:
        return False
    _verified[str(path), sha256] = mark
    return True


def _touch(path: Path) -> bool:
    """Mark the file as used now and return True, or False when there is none. The time of change is kept: it is part of
    what tells a verified file from a changed one."""
    try:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def _was_used_since(path: Path, used: float) -> bool:
    """Return whether another process took the file into use after the folder was looked at."""
    try:
        return path.stat().st_atime > used
    except FileNotFoundError:
        return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _missing(store: ObjectStore, key: str) -> StorageError:
    return StorageError(f"{store.root}/{key} does not exist though a manifest names it; was it deleted by hand?")


def _corrupt(store: ObjectStore, key: str) -> CorruptObjectError:
    return CorruptObjectError(
        f"{store.root}/{key} does not have the size and SHA-256 that were committed; it was damaged or overwritten: "
        "restore it, or delete the artifact's folder and run the stage again"
    )
