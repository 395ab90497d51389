"""Object store on S3 and what speaks its language, through conditional writes. Retries and errors are in `s3_requests`.

Objects up to 64 MB go in one request; larger ones in parts, joined by one conditional request, so that nothing half
written is ever visible. Every upload carries SHA-256 checksums that the server verifies, and the hash of the whole as
metadata, by which a writer whose answer was lost recognises its own object.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from botocore.exceptions import BotoCoreError, FlexibleChecksumError
from urllib3.exceptions import HTTPError

from raydistill.errors import CorruptObjectError, StorageError
from raydistill.storage.hashing import content_size, sha256_hex
from raydistill.storage.s3_requests import (
    QUICK_TRIES,
    TRIES,
    ConditionRefusedError,
    ConflictError,
    ObjectMissingError,
    client_key,
    pause,
    request,
)
from raydistill.storage.store import Leftover, ObjectInfo

_ONE_REQUEST = 64_000_000
"""Bytes up to which an object is put in one request."""
_PART = 16 << 20
_MAX_PARTS = 10_000
_PAGE = 1000
_UPLOADS = 4
_BLOCK = 1 << 20
_HASH = "raydistill-sha256"
_MISSING_UPLOAD = "the upload was refused or ended; its parts are gone"

_seen_buckets: set[tuple[object, ...]] = set()
"""(client, bucket) that answered in this process."""


class ReplacedError(StorageError):
    """An object that became another while it was being read and its connection broke."""


class S3Store:
    """`ObjectStore` under `s3://bucket/prefix`; see raydistill.storage.store for the meaning of each method.

    Credentials, region and endpoint come from the environment as boto3 reads it. The first store of a process asks
    whether the bucket is there. Picklable; the unpickled store makes its own connections.
    """

    def __init__(self, uri: str) -> None:
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.prefix = prefix.strip("/")
        if not self.bucket:
            raise StorageError(f"{uri!r} names no bucket; write s3://bucket/prefix")
        self.root = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        seen = (*client_key(), self.bucket)
        if seen not in _seen_buckets:
            self._check_bucket()
            _seen_buckets.add(seen)

    def __repr__(self) -> str:
        return f"S3Store({self.root!r})"

    def read(self, key: str) -> bytes:
        for attempt in range(1, TRIES + 1):
            try:
                with S3Reader(self.bucket, self._full(key)) as stream:
                    return stream.readall()
            except ReplacedError:  # as CURRENT may be; the whole is wanted, so begin anew
                if attempt == TRIES:
                    raise
        raise AssertionError("unreachable: the last try returns or raises")

    def open(self, key: str) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(S3Reader(self.bucket, self._full(key)), _BLOCK))

    def download(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".raydistill-{uuid.uuid4().hex}.tmp"
        try:
            with S3Reader(self.bucket, self._full(key)) as stream, temporary.open("xb") as target:
                while block := stream.read(_BLOCK):
                    target.write(block)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def download_range(self, key: str, start: int, size: int, path: Path) -> None:
        with S3Reader(self.bucket, self._full(key), start, size) as stream, path.open("wb") as target:
            if stream.size != size:
                raise StorageError(f"{self._uri(key)} ends before byte {start + size}; it was cut short")
            while block := stream.read(_BLOCK):
                target.write(block)

    def info(self, key: str) -> ObjectInfo | None:
        try:
            found = self._head(key)
        except ObjectMissingError:
            return None
        return ObjectInfo(key, int(found["ContentLength"]), found["ETag"], found["LastModified"].timestamp())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        cut = len(self.prefix) + 1 if self.prefix else 0
        full = f"{self.prefix}/{prefix}" if self.prefix else prefix
        where: dict[str, Any] = {"Bucket": self.bucket, "Prefix": full, "MaxKeys": _PAGE}
        while True:
            page = request(lambda client: client.list_objects_v2(**where), f"s3://{self.bucket}/{full}")
            for found in page.get("Contents", ()):
                yield ObjectInfo(found["Key"][cut:], int(found["Size"]), found["ETag"], found["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            where["ContinuationToken"] = page["NextContinuationToken"]

    def put_if_absent(self, key: str, content: bytes | Path) -> bool:
        if content_size(content) > _ONE_REQUEST:
            if self.info(key) is not None:  # spares an upload that would be refused at its end
                return self._holds(key, content)
            created = self._put_in_parts(key, content)
        else:
            body = content if isinstance(content, bytes) else content.read_bytes()
            created = self._put(key, body, IfNoneMatch="*")
        return created or self._holds(key, content)

    def compare_and_swap(self, key: str, content: bytes, expected_etag: str | None) -> bool:
        condition = {"IfNoneMatch": "*"} if expected_etag is None else {"IfMatch": expected_etag}
        try:
            request(lambda client: client.put_object(**self._upload(key, content), **condition), self._uri(key))
        except ObjectMissingError:  # expected to exist, deleted meanwhile
            return False
        except ConditionRefusedError as refused:
            return refused.repeated and self._holds(key, content)
        return True

    def replace(self, key: str, content: bytes | Path) -> None:
        if content_size(content) > _ONE_REQUEST:
            self._put_in_parts(key, content, condition={})
            return
        self._put(key, content if isinstance(content, bytes) else content.read_bytes())

    def delete(self, key: str) -> None:
        with suppress(ObjectMissingError):
            request(lambda client: client.delete_object(Bucket=self.bucket, Key=self._full(key)), self._uri(key))

    def leftovers(self) -> Iterator[Leftover]:
        cut = len(self.prefix) + 1 if self.prefix else 0
        where: dict[str, Any] = {"Bucket": self.bucket, "Prefix": f"{self.prefix}/" if self.prefix else ""}
        while True:
            try:
                page = request(lambda client: client.list_multipart_uploads(**where), self.root)
            except ObjectMissingError:  # how some stores say that there are none
                return
            for found in page.get("Uploads", ()):
                yield Leftover(found["UploadId"], found["Key"][cut:], 0, found["Initiated"].timestamp())
            if not page.get("IsTruncated"):
                return
            where.update(KeyMarker=page["NextKeyMarker"], UploadIdMarker=page["NextUploadIdMarker"])

    def discard(self, leftover: Leftover) -> None:
        where = {"Bucket": self.bucket, "Key": self._full(leftover.key), "UploadId": leftover.place}
        with suppress(ObjectMissingError):
            request(lambda client: client.abort_multipart_upload(**where), self._uri(leftover.key))

    def _full(self, key: str) -> str:
        if not key or key.startswith("/") or any(piece in ("", ".", "..") for piece in key.split("/")):
            raise StorageError(
                f"{key!r} is no valid key under {self.root}: use names joined by single slashes, without . and .."
            )
        return f"{self.prefix}/{key}" if self.prefix else key

    def _uri(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _check_bucket(self) -> None:
        try:
            request(lambda client: client.head_bucket(Bucket=self.bucket), self.root, tries=QUICK_TRIES)
        except ObjectMissingError:
            raise StorageError(
                f"{self.root}: the bucket {self.bucket} does not exist; create it, or correct the address "
                "(raydistill never creates buckets)"
            ) from None

    def _head(self, key: str) -> dict[str, Any]:
        full = self._full(key)
        return dict(request(lambda client: client.head_object(Bucket=self.bucket, Key=full), self._uri(key)))

    def _upload(self, key: str, body: bytes) -> dict[str, Any]:
        """Return the arguments of an upload. The checksum goes as a header: servers that mangle trailing ones exist."""
        digest = hashlib.sha256(body)
        return {
            "Bucket": self.bucket,
            "Key": self._full(key),
            "Body": body,
            "ChecksumSHA256": base64.b64encode(digest.digest()).decode(),
            "Metadata": {_HASH: digest.hexdigest()},
        }

    def _put(self, key: str, body: bytes, **condition: str) -> bool:
        """Put the object in one request and return whether the condition held."""
        upload = self._upload(key, body)
        try:
            request(lambda client: client.put_object(**upload, **condition), self._uri(key))
        except ConditionRefusedError:
            return False
        return True

    def _holds(self, key: str, content: bytes | Path) -> bool:
        """Return whether the store has exactly these bytes under the key."""
        try:
            found = self._head(key)
        except ObjectMissingError:
            return False
        digest = sha256_hex(content)
        if int(found["ContentLength"]) != content_size(content):
            return False
        if _HASH in found.get("Metadata", {}):
            return bool(found["Metadata"][_HASH] == digest)
        stored = hashlib.sha256()
        with self.open(key) as stream:
            while block := stream.read(_BLOCK):
                stored.update(block)
        return stored.hexdigest() == digest

    def _put_in_parts(self, key: str, content: bytes | Path, condition: dict[str, str] | None = None) -> bool:
        """Put a large object by multipart upload and return whether the condition (default: absent) held.

        When the last request meets a concurrent one (409) or its answer was lost, S3 has ended the upload: the object is
        looked up, and everything uploaded again if it is not there. Such an upload must begin anew.
        """
        condition = {"IfNoneMatch": "*"} if condition is None else condition
        for attempt in range(1, TRIES + 1):
            upload = self._start_upload(key, content)
            try:
                parts = self._upload_parts(key, upload, content)
                request(
                    lambda client, upload=upload, parts=parts: client.complete_multipart_upload(  # type: ignore[misc]
                        Bucket=self.bucket,
                        Key=self._full(key),
                        UploadId=upload,
                        MultipartUpload={"Parts": parts},
                        **condition,
                    ),
                    self._uri(key),
                    repeat_conflicts=False,
                )
                return True
            except ConditionRefusedError:
                self._abort(key, upload)
                return False
            except (ConflictError, ObjectMissingError):
                self._abort(key, upload)
                if self._holds(key, content):
                    return True
                if condition and self.info(key) is not None:
                    return False
                pause(attempt)
            except BaseException:
                self._abort(key, upload)
                raise
        raise StorageError(
            f"{self._uri(key)} could not be uploaded: {_MISSING_UPLOAD}; run again when no other run writes it"
        )

    def _start_upload(self, key: str, content: bytes | Path) -> str:
        digest = sha256_hex(content)
        started = request(
            lambda client: client.create_multipart_upload(
                Bucket=self.bucket, Key=self._full(key), ChecksumAlgorithm="SHA256", Metadata={_HASH: digest}
            ),
            self._uri(key),
        )
        return str(started["UploadId"])

    def _upload_parts(self, key: str, upload: str, content: bytes | Path) -> Sequence[dict[str, Any]]:
        size = content_size(content)
        length = max(_PART, -(-size // _MAX_PARTS))

        def send(number: int) -> dict[str, Any]:
            body = _slice(content, (number - 1) * length, length)
            checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
            answer = request(
                lambda client: client.upload_part(
                    Bucket=self.bucket,
                    Key=self._full(key),
                    UploadId=upload,
                    PartNumber=number,
                    Body=body,
                    ChecksumSHA256=checksum,
                ),
                self._uri(key),
            )
            return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

        with ThreadPoolExecutor(_UPLOADS) as pool:
            return list(pool.map(send, range(1, -(-size // length) + 1)))

    def _abort(self, key: str, upload: str) -> None:
        """End an upload, so that its parts are not stored (and paid) for ever; what stops the caller matters more."""
        with suppress(StorageError):
            request(
                lambda client: client.abort_multipart_upload(Bucket=self.bucket, Key=self._full(key), UploadId=upload),
                self._uri(key),
                tries=QUICK_TRIES,
            )


class S3Reader(io.RawIOBase):
    """One object, or `length` bytes (> 0) of it from `start` on, as a stream. A connection that breaks is replaced by one
    that goes on at the same byte of the same version; the end is only reported when all bytes came. Raises StorageError
    otherwise."""

    def __init__(self, bucket: str, key: str, start: int = 0, length: int | None = None) -> None:
        self._object = {"Bucket": bucket, "Key": key}
        self._uri = f"s3://{bucket}/{key}"
        self._start = start
        self._stop = "" if length is None else str(start + length - 1)
        self._position = 0
        part = {} if length is None else {"Range": f"bytes={start}-{self._stop}"}
        answer = request(lambda client: client.get_object(**self._object, **part), self._uri)
        self._body = answer["Body"]
        self._etag = answer["ETag"]
        self.size = int(answer["ContentLength"])

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        block = self._read(min(len(view), self.size - self._position))
        view[: len(block)] = block
        return len(block)

    def readall(self) -> bytes:
        blocks = []
        while block := self.read(_BLOCK):
            blocks.append(block)
        return b"".join(blocks)

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()

    def _read(self, length: int) -> bytes:
        """Return up to `length` bytes, at least one unless the object is over."""
        if length == 0:
            return b""
        for attempt in range(1, TRIES + 1):
            block = b""
            try:
                block = self._body.read(length)
            except FlexibleChecksumError as error:
                raise CorruptObjectError(
                    f"{self._uri} is damaged in the store ({error}); restore it or write it anew"
                ) from error
            except (BotoCoreError, HTTPError, OSError):
                pass  # the connection broke: go on with another
            if block:
                self._position += len(block)
                return block
            pause(attempt)
            self._reconnect()
        raise StorageError(
            f"{self._uri} ended after {self._position} of {self.size} bytes, {TRIES} times; check the network and the store"
        )

    def _reconnect(self) -> None:
        self._body.close()
        try:
            answer = request(
                lambda client: client.get_object(
                    **self._object, Range=f"bytes={self._start + self._position}-{self._stop}", IfMatch=self._etag
                ),
                self._uri,
            )
        except ConditionRefusedError:
            raise ReplacedError(f"{self._uri} was replaced while it was being read; run again") from None
        self._body = answer["Body"]


def _slice(content: bytes | Path, start: int, length: int) -> bytes:
    if isinstance(content, bytes):
        return content[start : start + length]
    with content.open("rb") as stream:
        stream.seek(start)
        return stream.read(length)
