"""Streams of passages out of corpus files. Sharding and storage of a corpus live in `raydistill.index.corpus`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from shutil import copyfileobj
from typing import Any, BinaryIO, cast

from raydistill.config import CorpusFormat, DatasetPart, PassageColumns
from raydistill.conversations.hub import dataset_rows
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

__all__ = ["BadRow", "dataset_passages", "read_passages"]

_USUAL_NAMES = {
    "id": ("_id", "id", "docid", "doc_id", "pid", "passage_id"),
    "text": ("text", "contents", "content", "passage", "body"),
    "title": ("title",),
}
_MS_MARCO_COLUMNS: dict[int, tuple[str, ...]] = {
    2: ("id", "text"),
    3: ("id", "text", "title"),
    4: ("id", "url", "title", "text"),
}
_ROWS_AT_A_TIME = 1024
_READ_BUFFER = 1 << 20


def read_passages(
    stream: BinaryIO, uri: str, corpus_format: CorpusFormat, columns: PassageColumns | None = None
) -> Iterator[Passage | BadRow]:
    """Yield the passages of an open, decompressed corpus file; a malformed row comes as a BadRow and ends nothing.

    Args:
        stream: bytes from the beginning of the file.
        uri: name of the file, for places.
        corpus_format: "jsonl": records with an id, a text and perhaps a title. "tsv": a header that names the columns, then
            one passage a line. A field wholly in double quotes with its inner quotes doubled (as Wikipedia dumps for dense
            retrieval have) is unquoted; any other quote is text. "msmarco": lines without a header, all with as many
            columns as the first: id, text; or id, text, title; or id, url, title, text; quotes are text. "parquet" and
            "prepared": columns of strings (ids may be integers), read a batch of rows at a time.
        columns: names of the fields, where they are not usual ones (id: _id, id, docid, doc_id, pid, passage_id; text:
            text, contents, content, passage, body; title).

    Raises:
        DataError: a TSV file without its header, columns that are not there, a file that is no Parquet.
        StorageError: from a stream of `open_input`, when the archive is damaged.
    """
    names = columns or PassageColumns()
    if corpus_format in ("parquet", "prepared"):
        yield from _parquet_passages(stream, uri, names)
        return
    lines = numbered_lines(stream, uri)
    if corpus_format == "jsonl":
        yield from _parsed(lines, _JsonPassage(names))
    elif corpus_format == "msmarco":
        yield from _ms_marco_passages(lines)
    else:
        header = next(lines, None)
        if header is not None:
            yield from _parsed(lines, _TsvPassage(_header_columns(header, names)))


class _JsonPassage:
    """Parses a line that is one JSON object."""

    def __init__(self, columns: PassageColumns) -> None:
        self._columns = columns

    def __call__(self, text: str) -> Passage:
        record = json_object(text)
        fields = {field: _chosen(field, self._columns, record) for field in _USUAL_NAMES}
        return _passage(record, fields["id"] or "_id", fields["text"] or "text", fields["title"])


def _chosen(field: str, columns: PassageColumns, names: Iterable[str]) -> str | None:
    """Return the name that a field has among those of a file; None when it has none."""
    configured = getattr(columns, field)
    if configured is not None:
        return cast(str, configured)
    present = set(names)
    return next((name for name in _USUAL_NAMES[field] if name in present), None)


def _passage(record: dict[str, Any], id_name: str, text_name: str, title_name: str | None) -> Passage:
    title = optional_text(record, title_name) if title_name else ""
    return Passage(identifier(record, id_name), required_text(record, text_name), title)


def _header_columns(header: Line | BadRow, columns: PassageColumns) -> tuple[str, ...]:
    """Return what the columns of a TSV file are: id, text, title, or "" for one that is not read."""
    names = [name.strip() for name in header.text.split("\t")] if isinstance(header, Line) else []
    chosen = {_chosen(field, columns, names): field for field in _USUAL_NAMES}
    found = tuple(chosen.get(name, "") for name in names)
    if not {"id", "text"} <= set(found) or len(set(names)) != len(names):
        raise DataError(
            f"{header.place}: a tsv corpus begins with the header 'id<TAB>text<TAB>title' (title may be missing); add it, "
            "name its columns in data.corpus_columns, or set data.corpus_format: jsonl, or msmarco where there is no header"
        )
    return found


def _ms_marco_passages(lines: Iterator[Line | BadRow]) -> Iterator[Passage | BadRow]:
    parse: _TsvPassage | None = None
    for line in lines:
        if isinstance(line, BadRow):
            yield line
            continue
        if parse is None:
            fields = line.text.split("\t")
            if len(fields) not in _MS_MARCO_COLUMNS:
                raise DataError(
                    f"{line.place}: has {len(fields)} tab-separated columns; a msmarco corpus has id, text; or id, text, "
                    "title; or id, url, title, text"
                )
            if fields[0].strip().lower() in _USUAL_NAMES["id"]:
                raise DataError(f"{line.place}: begins with a header; set data.corpus_format: tsv")
            parse = _TsvPassage(_MS_MARCO_COLUMNS[len(fields)], quoted=False)
        yield from _parsed(iter([line]), parse)


def _parquet_passages(stream: BinaryIO, uri: str, columns: PassageColumns) -> Iterator[Passage | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        if not stream.seekable():
            # The footer is at the end: a stream from an object store goes to disk first, never into memory.
            local = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(prefix="raydistill-parquet-")))
            copyfileobj(stream, local, _READ_BUFFER)
            local.seek(0)
            stream = local
        try:
            file = pq.ParquetFile(pa.PythonFile(stream, mode="r"), buffer_size=_READ_BUFFER, pre_buffer=False)
            names = _row_names(uri, file.schema_arrow.names, columns)
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=[name for name in names if name]):
                for record in batch.to_pylist():
                    number += 1
                    yield _row_passage(record, names, f"{uri}: row {number}")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{uri}: cannot be read as Parquet ({error}); it is damaged or another format") from None


def dataset_passages(uri: str, part: DatasetPart, columns: PassageColumns | None = None) -> Iterator[Passage | BadRow]:
    """Yield the passages of a Hugging Face data set, streamed; see `read_passages`. DataError as `hub.dataset_rows`."""
    names: tuple[str, str, str | None] | None = None
    for number, record in enumerate(dataset_rows(uri, part), start=1):
        names = names or _row_names(uri, list(record), columns or PassageColumns())
        yield _row_passage(record, names, f"{uri}: row {number}")


def _row_names(uri: str, present: Sequence[str], columns: PassageColumns) -> tuple[str, str, str | None]:
    """Return the names of the columns of id, text and title (None without one)."""
    id_name, text_name, title_name = (_chosen(field, columns, present) for field in ("id", "text", "title"))
    absent = [name for name in (id_name, text_name, title_name) if name is not None and name not in present]
    if absent or id_name is None or text_name is None:
        missing = f"column {absent[0]}" if absent else "id" if id_name is None else "text"
        raise DataError(
            f"{uri}: has the columns {', '.join(present)}, none of which is the {missing} of its passages; name them in "
            "data.corpus_columns"
        )
    return id_name, text_name, title_name


def _row_passage(record: dict[str, Any], names: tuple[str, str, str | None], place: str) -> Passage | BadRow:
    try:
        return _passage(record, *names)
    except RowError as error:
        return BadRow(place, str(error))


class _TsvPassage:
    """Parses a line of tab-separated columns: `columns` says what each is, "" for one that is not read."""

    def __init__(self, columns: Sequence[str], quoted: bool = True) -> None:
        self._columns = columns
        self._quoted = quoted

    def __call__(self, text: str) -> Passage:
        fields = text.split("\t")
        if len(fields) != len(self._columns):
            raise RowError(f"has {len(fields)} tab-separated columns instead of {len(self._columns)}")
        record = dict(zip(self._columns, map(_unquoted, fields) if self._quoted else fields, strict=True))
        return _passage(record, "id", "text", "title")


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
