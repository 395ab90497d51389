"""Requests to S3: one client a process, retries with jitter, and the one place that tells transient errors from permanent
ones and turns them into sentences. What is requested is in `s3`.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    InvalidRegionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
)

from raydistill.errors import StorageError

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 20.0
TRIES = 10
"""Tries of a request: with pauses that double, a store may throttle for about half a minute."""
QUICK_TRIES = 3
"""Tries of the first request to a bucket, which should fail soon when the endpoint is wrong."""

_BROKEN_CONNECTION = (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, ProfileNotFound)
_TRANSIENT_STATUS = frozenset({408, 409, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset(
    {
        "SlowDown",
        "SLOW_DOWN",
        "RequestTimeout",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "InternalError",
        "ServiceUnavailable",
        "BadDigest",  # damaged on the way
        "IncompleteBody",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
_REFUSED_CREDENTIALS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
)
_REGION_CODES = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"})

# What the client depends on; another value means another client.
_ENVIRONMENT = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)


class ObjectMissingError(StorageError):
    """The key (or the upload id) of a request does not exist."""


class ConflictError(StorageError):
    """A request that must not simply be repeated met another one (409)."""


@dataclass
class ConditionRefusedError(Exception):
    """A conditional write was answered 412. `repeated`: an earlier try got no answer and may have been the one that won."""

    repeated: bool


_clients: dict[tuple[object, ...], Any] = {}
_clients_lock = threading.Lock()


def client_key() -> tuple[object, ...]:
    """Return what identifies the client of this process (a fork must not share connections) and this environment."""
    return (os.getpid(), *(os.environ.get(name) for name in _ENVIRONMENT))


def s3_client() -> Any:
    """Return the process's boto3 S3 client, made on first use. boto3's own retries are off: `request` retries."""
    key = client_key()
    with _clients_lock:
        if key not in _clients:
            config = Config(
                connect_timeout=5,
                read_timeout=60,
                retries={"total_max_attempts": 1, "mode": "standard"},
                max_pool_connections=32,
            )
            try:
                _clients[key] = boto3.session.Session().client("s3", config=config)
            except ValueError as error:  # what botocore says of a malformed endpoint
                raise StorageError(
                    f"no S3 client can be made ({error}); AWS_ENDPOINT_URL must be a URL, such as http://localhost:9000"
                ) from error
        return _clients[key]


def request(send: Callable[[Any], T], uri: str, tries: int = TRIES, repeat_conflicts: bool = True) -> T:
    """Return `send(client)`, repeated with growing random pauses while the error may pass.

    Raises:
        ObjectMissingError: 404.
        ConditionRefusedError: 412.
        ConflictError: 409, where conflicts are not to be repeated.
        StorageError: everything else that is permanent, or lasts.
    """
    for attempt in range(1, tries + 1):
        try:
            return send(s3_client())
        except (ClientError, BotoCoreError) as error:
            status, code = _status_and_code(error)
            if status == 412 or code == "PreconditionFailed":
                raise ConditionRefusedError(repeated=attempt > 1) from error
            if status == 409 and not repeat_conflicts:
                raise ConflictError(f"{uri} is being written by another request ({error})") from error
            if not _is_transient(error, status, code):
                raise _permanent(error, status, code, uri) from error
            if attempt == tries:
                raise StorageError(_lasting(error, uri, tries)) from error
            pause(attempt)
    raise AssertionError("unreachable: the last try returns or raises")


def pause(attempt: int) -> None:
    """Sleep before the next try: a random time up to a bound that doubles, so that workers do not come back together."""
    bound = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
    time.sleep(random.uniform(bound / 4, bound))


def _status_and_code(error: Exception) -> tuple[int, str]:
    if isinstance(error, ClientError):
        response: dict[str, Any] = dict(error.response)
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)), str(
            response.get("Error", {}).get("Code", "")
        )
    return 0, ""


def _is_transient(error: Exception, status: int, code: str) -> bool:
    if isinstance(error, ClientError):
        return (status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES) and code not in (
            "BucketAlreadyExists",
            "NotImplemented",
        )
    return isinstance(error, _BROKEN_CONNECTION)


def _lasting(error: Exception, uri: str, tries: int) -> str:
    if isinstance(error, _BROKEN_CONNECTION):
        endpoint = s3_client().meta.endpoint_url
        return (
            f"{uri}: {endpoint} did not answer in {tries} tries ({error}); check the network and AWS_ENDPOINT_URL, "
            "on the workers too"
        )
    return (
        f"{uri}: the store still refuses after {tries} tries ({error}); use fewer actors, or run again later: "
        "finished work is kept"
    )


def _permanent(error: Exception, status: int, code: str, uri: str) -> StorageError:
    if code == "NoSuchBucket":
        return StorageError(
            f"{uri}: the bucket does not exist; create it, or correct root (raydistill never creates buckets)"
        )
    if status == 404:
        return ObjectMissingError(f"{uri} does not exist; check the root and whether the stage that makes it has finished")
    if isinstance(error, _NO_CREDENTIALS):
        return StorageError(
            f"{uri}: there are no usable credentials here ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE, or give the machines of the cluster a role"
        )
    if code in _REFUSED_CREDENTIALS:
        return StorageError(f"{uri}: the store refuses the credentials ({code}); renew them, on every node")
    if status in (401, 403):
        return StorageError(
            f"{uri}: access denied ({code or status}); the credentials need s3:ListBucket, s3:GetObject, s3:PutObject and "
            "s3:DeleteObject on this bucket and prefix"
        )
    if code in _REGION_CODES or status == 301 or isinstance(error, InvalidRegionError):
        return StorageError(f"{uri}: the bucket lies in another region ({error}); set AWS_REGION to it")
    if status == 501 or code == "NotImplemented":
        return StorageError(
            f"{uri}: the store lacks what raydistill needs ({error}): conditional writes (If-None-Match, If-Match)"
        )
    if isinstance(error, ParamValidationError):
        return StorageError(f"{uri}: this is no usable S3 address ({error}); write s3://bucket/prefix")
    return StorageError(f"{uri}: the request failed ({error}); check the root and the store")
