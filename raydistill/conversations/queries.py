"""Readers of queries that stand alone: BEIR JSON lines, tab-separated lines as of MS MARCO, and TREC topics.

Each becomes a conversation of one turn. Judgements come from qrels in BEIR or TREC form.

Protocol: a grade above 0 is relevant; queries without a judgement are left out of measures (files often hold the queries of
all splits); ids are kept as they are, and a query that stands alone is its own rewrite.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from raydistill.conversations.records import Conversation, Turn
from raydistill.conversations.rows import (
    BadRow,
    Line,
    Quarantine,
    RowError,
    identifier,
    json_object,
    numbered_lines,
    required_text,
)
from raydistill.conversations.sources import ConversationFile
from raydistill.storage.files import open_input

_Query = tuple[str, str]
_HEADER_STARTS = ("qid", "query_id", "query-id", "id")
_TAG = re.compile(r"<\s*(/?)\s*([a-z]+)[^>]*>", re.IGNORECASE)
_NUMBER = re.compile(r"\s*(?:number\s*:)?\s*(.*?)\s*", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"\s*(?:topic\s*:)?\s*(.*?)\s*", re.IGNORECASE | re.DOTALL)


def read_beir(uri: str, quarantine: Quarantine) -> ConversationFile:
    """Read BEIR queries: JSON lines {_id, text, ...}."""
    return _read(uri, quarantine, _lines(uri, _json_query))


def read_tsv_queries(uri: str, quarantine: Quarantine) -> ConversationFile:
    """Read lines `query id<TAB>text`, without a header or with one whose first column is qid, query_id, query-id or id."""
    return _read(uri, quarantine, _lines(uri, _tsv_query))


def read_trec_topics(uri: str, quarantine: Quarantine) -> ConversationFile:
    """Read TREC topics: `<top> <num> Number: 301 <title> words <desc> ... </top>`, closing tags inside optional.

    The query is the title; where there is none, the description.
    """
    return _read(uri, quarantine, _topics(uri))


def _read(uri: str, quarantine: Quarantine, rows: Iterator[tuple[str, _Query] | BadRow]) -> ConversationFile:
    queries: dict[str, str] = {}
    for row in rows:
        if isinstance(row, BadRow):
            quarantine.add(row)
            continue
        place, (query_id, text) = row
        if query_id in queries:
            quarantine.add(BadRow(place, f"query id {query_id!r} is used twice"))
        else:
            queries[query_id] = text
    conversations = (Conversation(query_id, (Turn(query_id, 1, text, "", text),)) for query_id, text in queries.items())
    return ConversationFile(uri, tuple(conversations))


def _lines(uri: str, parse: Callable[[str], _Query]) -> Iterator[tuple[str, _Query] | BadRow]:
    with open_input(uri) as stream:
        first = True
        for line in numbered_lines(stream, uri):
            header = first and isinstance(line, Line) and line.text.split("\t")[0].strip().lower() in _HEADER_STARTS
            first = False
            if header:
                continue
            if isinstance(line, BadRow):
                yield line
                continue
            try:
                yield line.place, parse(line.text)
            except RowError as error:
                yield BadRow(line.place, str(error))


def _json_query(text: str) -> _Query:
    record = json_object(text)
    return identifier(record, "_id"), required_text(record, "text").strip()


def _tsv_query(text: str) -> _Query:
    fields = text.split("\t")
    if len(fields) != 2:
        raise RowError(f"has {len(fields)} tab-separated columns instead of 2 (query id and text)")
    return identifier({"id": fields[0]}, "id"), required_text({"text": fields[1]}, "text").strip()


def _topics(uri: str) -> Iterator[tuple[str, _Query] | BadRow]:
    """Yield the topics of a file, of which one is in memory at a time; what stands between topics is a bad row."""
    inside: list[str] | None = None
    begun = uri
    with open_input(uri) as stream:
        for line in numbered_lines(stream, uri):
            if isinstance(line, BadRow):
                yield line
                continue
            tag = line.text.strip().lower()
            if tag == "<top>":
                if inside is not None:
                    yield BadRow(begun, "begins a topic that does not end (</top> is missing)")
                begun, inside = line.place, []
            elif tag == "</top>" and inside is not None:
                try:
                    yield begun, _topic("\n".join(inside))
                except RowError as error:
                    yield BadRow(begun, str(error))
                inside = None
            elif inside is None:
                yield BadRow(line.place, "is not inside a topic (<top> on a line of its own begins one)")
            else:
                inside.append(line.text)
    if inside is not None:
        yield BadRow(begun, "begins a topic that does not end (</top> is missing)")


def _topic(text: str) -> _Query:
    fields: dict[str, str] = {}
    matches = list(_TAG.finditer(text))
    for match, following in zip(matches, [*matches[1:], None], strict=True):
        if not match[1]:
            end = following.start() if following else len(text)
            fields.setdefault(match[2].lower(), text[match.end() : end])
    number = _NUMBER.fullmatch(fields.get("num", ""))
    title = _TITLE.fullmatch(fields.get("title", ""))
    query_id = identifier({"num": number[1] if number else ""}, "num")
    words = (title[1] if title else "") or fields.get("desc", "").strip().removeprefix("Description:")
    return query_id, required_text({"title": " ".join(words.split())}, "title")
