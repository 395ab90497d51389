"""Rewrites that were made elsewhere: reading and checking their files. Parsing of the texts lives in `parsing`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from raydistill.config import AS_ASKED, IN_CONVERSATIONS, WITHOUT_FILE
from raydistill.conversations.records import ConversationalQuery
from raydistill.conversations.rows import BadRow, RowError, identifier, json_object, numbered_lines, optional_text
from raydistill.errors import DataError
from raydistill.storage.files import open_input

_TSV = (".tsv", ".tsv.gz", ".tsv.bz2", ".tsv.zst")


@dataclass(frozen=True, slots=True)
class RecordedRewrites:
    """What a recorded teacher knows of some queries, by query id.

    Attributes:
        raw: what a language model (or a person) wrote into a file; to be parsed like a fresh answer.
        held: what the conversation itself holds, or the question as it was asked, for queries without a raw text; taken as
            it is.
    """

    raw: Mapping[str, str]
    held: Mapping[str, str]

    def __contains__(self, query_id: str) -> bool:
        return query_id in self.raw or query_id in self.held


def read_recorded(uris: Sequence[str]) -> dict[str, str]:
    """Read files of rewrites as one: query id -> text, kept raw, empty ones included.

    A file holds JSON lines {_id: query id, text: what was written}, or (.tsv) lines `query id<TAB>text`.

    Raises:
        DataError: naming file and line: a malformed line, or an id with two different texts in one file or two.
        StorageError: a file does not exist or cannot be read.
    """
    texts: dict[str, str] = {}
    places: dict[str, str] = {}
    for uri in uris:
        parse = _tsv_rewrite if uri.endswith(_TSV) else _json_rewrite
        lines = 0
        with open_input(uri) as stream:
            for line in numbered_lines(stream, uri):
                if isinstance(line, BadRow):
                    raise DataError(f"{line.place}: {line.reason}; correct the line")
                try:
                    query_id, text = parse(line.text)
                except RowError as error:
                    raise DataError(f"{line.place}: {error}; correct the line or remove it") from None
                lines += 1
                if texts.setdefault(query_id, text) != text:
                    raise DataError(
                        f"{line.place}: query id {query_id!r} has another text in {places[query_id]}; keep one of them"
                    )
                places.setdefault(query_id, line.place)
        if not lines:
            raise DataError(f"{uri}: holds no rewrite; check the path")
    return texts


def recorded_rewrites(rewrites: Sequence[str], queries: Iterable[ConversationalQuery]) -> RecordedRewrites:
    """Return what a recorded teacher knows of the queries, possibly nothing. Raises as `read_recorded`.

    Args:
        rewrites: files, IN_CONVERSATIONS for the rewrites that the queries bring themselves, AS_ASKED for their questions;
            a file's text counts first, then a rewrite, then the question.
        queries: those that are asked for.
    """
    texts = read_recorded([uri for uri in rewrites if uri not in WITHOUT_FILE])
    asked = list(queries)
    raw = {query.query_id: texts[query.query_id] for query in asked if query.query_id in texts}
    held: dict[str, str] = {}
    if AS_ASKED in rewrites:
        held = {query.query_id: query.question for query in asked}
    if IN_CONVERSATIONS in rewrites:
        held |= {query.query_id: query.rewrite for query in asked if query.rewrite}
    return RecordedRewrites(raw, {query_id: text for query_id, text in held.items() if query_id not in raw})


def known_nothing(rewrites: Sequence[str], queries: Sequence[ConversationalQuery]) -> str:
    """Return the sentence that says that a recorded teacher has a rewrite of none of the queries, and what to look at."""
    files = [uri for uri in rewrites if uri not in WITHOUT_FILE]
    if not files:
        return (
            "the conversations hold no rewrites of their own; only those of readers cast, ikat, qrecc, huggingface, "
            "prepared and passages may"
        )
    return (
        f"{', '.join(files)}: none of the ids is the id of a query (queries are named like {queries[0].query_id!r}, the "
        f"file's like {next(iter(read_recorded(files)))!r}); check that rewrites and conversations belong together"
    )


def _tsv_rewrite(line: str) -> tuple[str, str]:
    query_id, tab, text = line.partition("\t")
    if not tab:
        raise RowError("is not of the form 'query id<TAB>text'")
    return identifier({"id": query_id}, "id"), text


def _json_rewrite(line: str) -> tuple[str, str]:
    record = json_object(line)
    if "text" not in record:
        raise RowError("has no field 'text'")
    return identifier(record, "_id"), optional_text(record, "text")
