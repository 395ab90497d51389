"""Object store in a folder of the local (or a shared POSIX) file system. Objects on S3 live in `s3`.

Creation is atomic through a hard link (`link` fails when the name exists), replacement through a rename, and
compare-and-swap through a lock file beside the object. Names that begin with `.raydistill-` belong to this module
(temporary files, locks) and are never objects.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from raydistill.errors import ConfigError, StorageError
from raydistill.storage.hashing import content_size, sha256_hex
from raydistill.storage.store import Leftover, ObjectInfo

_OWN = ".raydistill-"
_SMALL = 1 << 16
"""Objects up to this size, as all that compare-and-swap moves are, have a content hash as etag; larger ones an inode tag."""
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def absolute_path(uri: str) -> Path:
    """Return the path of a `file:///…` URI or an absolute path, taken literally. Raises StorageError for anything else."""
    path = uri[len("file://") :] if uri.startswith("file://") else uri
    if "://" in path:
        raise StorageError(f"{uri}: this scheme is unknown; use s3://bucket/prefix or file:///absolute/path")
    if not path.startswith("/"):
        raise StorageError(
            f"{uri!r} is no absolute path; Ray workers run elsewhere and cannot resolve relative ones: "
            "use file:///absolute/path or s3://bucket/prefix"
        )
    return Path(os.path.normpath(path))


def output_folder(given: str, option: str) -> Path:
    """Return the folder of this machine that a command is to write to, made where it is missing.

    Raises ConfigError naming the option when it cannot be made.
    """
    folder = Path(given).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{option} is {given!r}, and no folder can be made there ({error.strerror}); name another"
        ) from None
    return folder


class LocalStore:
    """`ObjectStore` over a folder; see raydistill.storage.store for the meaning of each method.

    The folder is made on the first write. Etags are the SHA-256 of objects up to 64 KiB, else (inode, mtime, size).
    """

    def __init__(self, uri: str) -> None:
        self.folder = absolute_path(uri)
        self.root = f"file://{self.folder}".rstrip("/")

    def __repr__(self) -> str:
        return f"LocalStore({self.root!r})"

    def path(self, key: str) -> Path:
        """Return where the object of a key lies. Raises StorageError for keys that leave the root."""
        pieces = key.split("/")
        if not key or any(piece in ("", ".", "..") or piece.startswith(_OWN) for piece in pieces):
            raise StorageError(
                f"{key!r} is no valid key under {self.root}: use names joined by single slashes, without . and .., "
                f"not beginning with {_OWN}"
            )
        return self.folder.joinpath(*pieces)

    def read(self, key: str) -> bytes:
        with self._sentences(key, "read"), self.path(key).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            content = stream.read()
        if len(content) != size:
            raise StorageError(
                f"{self.root}/{key} gave {len(content)} of {size} bytes; it changed while being read: run again"
            )
        return content

    def open(self, key: str) -> BinaryIO:
        with self._sentences(key, "read"):
            return self.path(key).open("rb")

    def download(self, key: str, path: Path) -> None:
        source = self.path(key)
        with self._sentences(key, "copied"):
            size = source.stat().st_size
            with self._temporary(path, source) as temporary:
                copied = temporary.stat().st_size
                if copied != size:
                    raise StorageError(
                        f"{self.root}/{key} gave {copied} of {size} bytes; it changed while being read: run again"
                    )
                os.replace(temporary, path)

    def download_range(self, key: str, start: int, size: int, path: Path) -> None:
        with self._sentences(key, "read"), self.path(key).open("rb") as source, path.open("wb") as target:
            source.seek(start)
            left = size
            while block := source.read(min(1 << 20, left)):
                target.write(block)
                left -= len(block)
        if left:
            raise StorageError(f"{self.root}/{key} ends {left} bytes before byte {start + size}; it was cut short")

    def info(self, key: str) -> ObjectInfo | None:
        path = self.path(key)
        try:
            return self._describe(key, path) if path.is_file() else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error(key, "read", error) from error

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        parent, _, start = prefix.rpartition("/")
        folder = self.path(parent) if parent else self.folder
        yield from self._walk(folder, f"{parent}/" if parent else "", start)

    def put_if_absent(self, key: str, content: bytes | Path) -> bool:
        path = self.path(key)
        with self._sentences(key, "written"):
            if not path.exists():
                try:
                    with self._temporary(path, content) as temporary:
                        os.link(temporary, path)
                    _sync_folder(path.parent)
                    return True
                except FileExistsError:
                    pass
            return self._holds(path, content)

    def compare_and_swap(self, key: str, content: bytes, expected_etag: str | None) -> bool:
        path = self.path(key)
        with self._sentences(key, "swapped"), self._locked(path):
            found = self.info(key)
            if (found.etag if found else None) != expected_etag:
                return False
            with self._temporary(path, content) as temporary:
                if expected_etag is None:
                    try:
                        os.link(temporary, path)
                    except FileExistsError:  # a put_if_absent, which takes no lock, came first
                        return False
                else:
                    os.replace(temporary, path)
            _sync_folder(path.parent)
            return True

    def replace(self, key: str, content: bytes | Path) -> None:
        path = self.path(key)
        with self._sentences(key, "written"):
            with self._temporary(path, content) as temporary:
                os.replace(temporary, path)
            _sync_folder(path.parent)

    def delete(self, key: str) -> None:
        with self._sentences(key, "deleted"):
            self.path(key).unlink(missing_ok=True)

    def leftovers(self) -> Iterator[Leftover]:
        for path in sorted(self.folder.rglob(f"{_OWN}*.tmp")):
            with suppress(FileNotFoundError):
                status = path.stat()
                place = path.relative_to(self.folder).as_posix()
                yield Leftover(place, place, status.st_size, status.st_mtime)

    def discard(self, leftover: Leftover) -> None:
        with self._sentences(leftover.key, "deleted"):
            (self.folder / leftover.place).unlink(missing_ok=True)

    def _describe(self, key: str, path: Path) -> ObjectInfo:
        status = path.stat()
        if status.st_size <= _SMALL:
            content = path.read_bytes()
            return ObjectInfo(key, len(content), sha256_hex(content), status.st_mtime)
        etag = f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
        return ObjectInfo(key, status.st_size, etag, status.st_mtime)

    def _walk(self, folder: Path, prefix: str, start: str) -> Iterator[ObjectInfo]:
        """Yield a folder's objects whose name begins with `start`, and all below; a folder sorts as `name/`, as keys do."""
        try:
            with os.scandir(folder) as scan:
                entries = [(entry.name + "/" * entry.is_dir(), entry) for entry in scan if not entry.name.startswith(_OWN)]
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._error(prefix, "listed", error) from error
        for name, entry in sorted(entries, key=lambda pair: pair[0]):
            if not name.startswith(start):
                continue
            if name.endswith("/"):
                yield from self._walk(Path(entry.path), prefix + name, "")
                continue
            with suppress(FileNotFoundError):  # deleted since the scan
                yield self._describe(prefix + name, Path(entry.path))

    def _holds(self, path: Path, content: bytes | Path) -> bool:
        """Return whether the file has exactly these bytes."""
        return path.stat().st_size == content_size(content) and sha256_hex(path) == sha256_hex(content)

    @contextmanager
    def _temporary(self, path: Path, content: bytes | Path) -> Iterator[Path]:
        """Write the content, synced, under a name of our own beside the target; the name is gone afterwards."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{_OWN}{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("xb") as stream:
                if isinstance(content, bytes):
                    stream.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, stream, 1 << 20)
                stream.flush()
                os.fsync(stream.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold the lock of an object; the kernel frees it when its process dies."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / f"{_OWN}{path.name}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _sentences(self, key: str, what: str) -> Iterator[None]:
        """Turn errors of the operating system into StorageErrors."""
        try:
            yield
        except OSError as error:
            raise self._error(key, what, error) from error

    def _error(self, key: str, what: str, error: OSError) -> StorageError:
        uri = f"{self.root}/{key}"
        if isinstance(error, FileNotFoundError) and what in ("read", "copied"):
            return StorageError(f"{uri} does not exist; check the root and whether the stage that makes it has finished")
        advice = "check the path and its permissions"
        if error.errno == errno.ENOSPC:
            advice = "the disk is full: free space or use another root"
        elif error.errno in _NO_LINKS and what == "written":
            advice = "the file system may lack hard links, which atomic creation needs: use a local disk or s3://"
        return StorageError(f"{uri} could not be {what} ({error.strerror or error}); {advice}")


def _sync_folder(folder: Path) -> None:
    """Make new names of a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
