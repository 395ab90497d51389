"""Rewrites that were made elsewhere: reading and checking their file. Parsing of the texts lives in `parsing`."""

from __future__ import annotations

from collections.abc import Sequence

from raydistill.conversations.rows import BadRow, RowError, identifier, json_object, numbered_lines, optional_text
from raydistill.errors import DataError
from raydistill.storage.files import open_input


def read_recorded(uri: str) -> dict[str, str]:
    """Read JSON lines {_id: query id, text: what the model wrote}; texts are kept raw, empty ones included.

    Raises:
        DataError: naming file and line: a malformed line, or an id with two different texts.
        StorageError: the file does not exist or cannot be read.
    """
    texts: dict[str, str] = {}
    with open_input(uri) as stream:
        for line in numbered_lines(stream, uri):
            if isinstance(line, BadRow):
                raise DataError(f"{line.place}: {line.reason}; correct the line")
            try:
                query_id, text = _rewrite(line.text)
            except RowError as error:
                raise DataError(f"{line.place}: {error}; correct the line or remove it") from None
            if texts.setdefault(query_id, text) != text:
                raise DataError(f"{line.place}: query id {query_id!r} has another text on an earlier line; keep one of them")
    if not texts:
        raise DataError(f"{uri}: holds no rewrite; check the path")
    return texts


def matching_rewrites(uri: str, query_ids: Sequence[str]) -> dict[str, str]:
    """Read as `read_recorded`, and raise DataError when the file knows none of the queries."""
    texts = read_recorded(uri)
    if query_ids and not any(query_id in texts for query_id in query_ids):
        raise DataError(
            f"{uri}: none of its ids is the id of a query (queries are named like {query_ids[0]!r}, the file's like "
            f"{next(iter(texts))!r}); check that rewrites and conversations belong together"
        )
    return texts


def _rewrite(line: str) -> tuple[str, str]:
    record = json_object(line)
    if "text" not in record:
        raise RowError("has no field 'text'")
    return identifier(record, "_id"), optional_text(record, "text")
