"""Streams of passages out of corpus files. Sharding and storage of a corpus live in `raydistill.index.corpus`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal

from raydistill.conversations.records import Passage
from raydistill.conversations.rows import (
    BadRow,
    Line,
    RowError,
    identifier,
    json_object,
    numbered_lines,
    optional_text,
    required_text,
)
from raydistill.errors import DataError

__all__ = ["BadRow", "read_passages"]

_COLUMNS = ("id", "text", "title")


def read_passages(stream: BinaryIO, uri: str, corpus_format: Literal["jsonl", "tsv"]) -> Iterator[Passage | BadRow]:
    """Yield the passages of an open, decompressed corpus file; a malformed line comes as a BadRow and ends nothing.

    Args:
        stream: bytes from the beginning of the file.
        uri: name of the file, for places.
        corpus_format: "jsonl": BEIR records {_id, text, title (optional)}. "tsv": a header naming the columns id, text
            and title in any order, then one passage a line. A field wholly in double quotes with its inner quotes
            doubled (as Wikipedia dumps for dense retrieval have) is unquoted; any other quote is text.

    Raises:
        DataError: a TSV file without its header.
        StorageError: from a stream of `open_input`, when the archive is damaged.
    """
    if corpus_format == "jsonl":
        yield from _parsed(numbered_lines(stream, uri), _json_passage)
        return
    lines = numbered_lines(stream, uri)
    header = next(lines, None)
    if header is None:
        return
    names = tuple(header.text.strip().split("\t")) if isinstance(header, Line) else ()
    if sorted(names) != sorted(_COLUMNS):
        raise DataError(
            f"{header.place}: a tsv corpus begins with the header 'id<TAB>text<TAB>title'; "
            "add it, or set data.corpus_format: jsonl"
        )
    yield from _parsed(lines, _TsvPassage(names))


class _TsvPassage:
    """Parses a line of tab-separated columns in the header's order."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def __call__(self, text: str) -> Passage:
        fields = text.split("\t")
        if len(fields) != len(self._names):
            raise RowError(f"has {len(fields)} tab-separated columns instead of {len(self._names)}")
        record = dict(zip(self._names, map(_unquoted, fields), strict=True))
        return Passage(identifier(record, "id"), required_text(record, "text"), optional_text(record, "title"))


def _json_passage(text: str) -> Passage:
    record = json_object(text)
    return Passage(identifier(record, "_id"), required_text(record, "text"), optional_text(record, "title"))


def _parsed(lines: Iterator[Line | BadRow], parse: Callable[[str], Passage]) -> Iterator[Passage | BadRow]:
    for line in lines:
        if isinstance(line, BadRow):
            yield line
            continue
        try:
            passage = parse(line.text)
        except RowError as error:
            yield BadRow(line.place, str(error))
        else:
            yield passage


def _unquoted(field: str) -> str:
    if len(field) >= 2 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', ""):
        return field[1:-1].replace('""', '"')
    return field
