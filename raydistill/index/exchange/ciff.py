"""An index as CIFF (Common Index File Format, Lin et al., arXiv 2003.08276); BMP and PISA are among its readers.

A CIFF file is a sequence of protobuf messages, each behind its length as a varint: one Header, a PostingsList a term that
some passage has (here in ascending order of the terms' UTF-8 bytes), a DocRecord a passage.

    Header         1 version = 1, 2 postings lists, 3 passages, 4 postings lists, 5 passages (int32), 6 sum of all
                   impacts (int64), 7 their mean a passage (double), 8 description (string)
    PostingsList   1 term (string), 2 passages (int64), 3 sum of impacts (int64), 4 repeated Posting
    Posting        1 passage number, less that of the posting before it, 2 impact (int32)
    DocRecord      1 passage number, 2 external id (string), 3 sum of impacts (int32)

Fields that are 0 are left out, as protobuf 3 does. The messages are written by our own loop: the few varints need no
library, and a Python object a posting would take hours for an index of millions.

Memory: 8 bytes a passage of the index, and 26 bytes for each passage of the most frequent term; segments are mapped.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from raydistill.errors import DataError
from raydistill.index.compiled import compiled
from raydistill.index.exchange.quantise import Quantisation
from raydistill.index.exchange.stored import StoredPostings, windows
from raydistill.index.publish import IndexVersion
from raydistill.progress import Advance

_LARGEST_INT32 = 2**31 - 1


def write_ciff(
    path: Path,
    version: IndexVersion,
    names: Sequence[str],
    quantised: Quantisation,
    description: str,
    advance: Advance,
) -> None:
    """Write an index version as one CIFF file.

    Args:
        names: of the terms, by id.
        advance: told of passages, each counted once.

    Raises DataError when the index has more passages than CIFF can number.
    """
    if version.live > _LARGEST_INT32:
        raise DataError(f"{version.uri} has {version.live} passages, and CIFF numbers at most {_LARGEST_INT32}")
    lengths = passage_lengths(version, quantised)
    postings = StoredPostings(version)
    order = terms_in_order(names, postings.document_frequency)
    total = int(lengths.sum())
    with path.open("wb") as file:
        header = (
            _number(1, 1)
            + _number(2, len(order))
            + _number(3, version.live)
            + _number(4, len(order))
            + _number(5, version.live)
            + _number(6, total)
            + bytes([7 << 3 | 1])
            + struct.pack("<d", total / version.live if version.live else 0.0)
            + _text(8, description)
        )
        file.write(_varint(len(header)) + header)
        for term in order:
            passages, impacts = postings.of_term(term)
            _write_list(file, names[term], passages, quantised.apply(impacts))
        place = 0
        for entry in version.segments:
            for window in windows(version, entry):
                for passage_id in window.ids:
                    record = _number(1, place) + _text(2, passage_id) + _number(3, int(lengths[place]))
                    file.write(_varint(len(record)) + record)
                    place += 1
                advance(len(window.ids))


def passage_lengths(version: IndexVersion, quantised: Quantisation) -> NDArray[np.int64]:
    """Return the sum of each passage's whole-number impacts, int64 [passages not deleted]; reads all vectors once."""
    lengths = np.zeros(version.live, dtype=np.int64)
    place = 0
    for entry in version.segments:
        for window in windows(version, entry):
            sums = np.concatenate([[0], np.cumsum(quantised.apply(window.vectors.weights), dtype=np.int64)])
            lengths[place : place + len(window.ids)] = np.diff(sums[window.vectors.indptr])
            place += len(window.ids)
    if len(lengths) and lengths.max() > _LARGEST_INT32:
        raise DataError("the whole-number impacts of a passage sum up to more than 2^31 - 1; lower scale or bits")
    return lengths


def terms_in_order(names: Sequence[str], document_frequency: NDArray[np.int64]) -> list[int]:
    """Return the terms that some passage has, in ascending order of their names' bytes, as look-ups in engines need."""
    return sorted(np.flatnonzero(document_frequency).tolist(), key=lambda term: names[term].encode())


def _write_list(file: BinaryIO, name: str, passages: NDArray[np.int64], impacts: NDArray[np.int32]) -> None:
    gaps = np.diff(passages, prepend=0)
    sizes = _varint_sizes(gaps, impacts)
    head = _text(1, name) + _number(2, len(passages)) + _number(3, int(impacts.sum(dtype=np.int64)))
    file.write(_varint(len(head) + sizes) + head)
    encoded = np.empty(sizes, dtype=np.uint8)
    _encode(gaps, impacts, encoded)
    encoded.tofile(file)


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3]) + _varint(value) if value else b""


def _text(field: int, text: str) -> bytes:
    encoded = text.encode()
    return bytes([field << 3 | 2]) + _varint(len(encoded)) + encoded if encoded else b""


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _varint_sizes(gaps: NDArray[np.int64], impacts: NDArray[np.int32]) -> int:
    return int(_encoded_size(gaps, impacts))


@compiled
def _size(value: Any) -> Any:
    size = 1
    while value > 127:
        value >>= 7
        size += 1
    return size


@compiled
def _encoded_size(gaps, impacts):  # type: ignore[no-untyped-def]
    total = 0
    for posting in range(len(gaps)):
        total += 3 + _size(impacts[posting])
        if gaps[posting] > 0:
            total += 1 + _size(gaps[posting])
    return total


@compiled
def _put(value, encoded, at):  # type: ignore[no-untyped-def]
    while value > 127:
        encoded[at] = value & 127 | 128
        value >>= 7
        at += 1
    encoded[at] = value
    return at + 1


@compiled
def _encode(gaps, impacts, encoded):  # type: ignore[no-untyped-def]
    at = 0
    for posting in range(len(gaps)):
        size = 1 + _size(impacts[posting])
        if gaps[posting] > 0:
            size += 1 + _size(gaps[posting])
        encoded[at] = 34  # field 4, a message
        encoded[at + 1] = size
        at += 2
        if gaps[posting] > 0:
            encoded[at] = 8  # field 1, a varint
            at = _put(gaps[posting], encoded, at + 1)
        encoded[at] = 16  # field 2
        at = _put(impacts[posting], encoded, at + 1)
