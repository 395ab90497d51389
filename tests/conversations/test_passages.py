"""Corpus files stream as passages; a malformed line comes as a BadRow with its place and ends nothing."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.conversations.passages import BadRow, read_passages
from raydistill.conversations.records import Passage
from raydistill.errors import DataError

Format = Literal["jsonl", "tsv"]


def read(content: str | bytes, corpus_format: Format) -> list[Passage | BadRow]:
    raw = content.encode() if isinstance(content, str) else content
    return list(read_passages(io.BytesIO(raw), "c", corpus_format))


GOOD = b'{"_id": "p1", "title": "T", "text": "words"}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"_id": "p2", "text": ', "is not valid JSON"),
        (b'"p2"', "must be a JSON object, not a string"),
        (b'{"text": "words"}', "has no field '_id'"),
        (b'{"_id": " ", "text": "words"}', "field '_id' is empty"),
        (b'{"_id": "p\\t2", "text": "words"}', "field '_id' ('p\\t2') must not"),
        (b'{"_id": "p2", "text": ""}', "field 'text' is empty"),
        (b'{"_id": "p2", "text": ["words"]}', "field 'text' must be a string, not an array"),
        (b'{"_id": "p2", "text": "\xff"}', "is not UTF-8 (byte 24 of the line)"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_malformed_json_line_is_one_bad_row_among_good_ones(line: bytes, reason: str) -> None:
    first, bad, last = read(b"\n".join([GOOD, line, GOOD.replace(b"p1", b"p3")]), "jsonl")
    assert isinstance(bad, BadRow)
    assert bad.place == "c:2"
    assert bad.reason.startswith(reason)
    assert (first, last) == (Passage("p1", "words", "T"), Passage("p3", "words", "T"))


def test_a_title_may_be_absent_and_an_id_may_be_a_number() -> None:
    assert read('{"_id": 7, "text": "words", "title": null}', "jsonl") == [Passage("7", "words", "")]


def test_tsv_columns_follow_the_header_and_quoted_fields_are_unquoted() -> None:
    content = 'id\ttext\ttitle\n1\t"He said ""no"""\tPage [SEP] Section\n2\t"A" and "B"\t\n3\tonly two\n\r\n4\tlast\tT\r\n'
    first, second, bad, last = read(content, "tsv")
    assert first == Passage("1", 'He said "no"', "Page [SEP] Section")
    assert second == Passage("2", '"A" and "B"', "")
    assert bad == BadRow("c:4", "has 2 tab-separated columns instead of 3")
    assert last == Passage("4", "last", "T")
    assert read("title\tid\ttext\nT\t1\twords\n", "tsv") == [Passage("1", "words", "T")]


def test_a_tsv_file_without_its_header_is_refused() -> None:
    with pytest.raises(DataError, match="c:1: a tsv corpus begins with the header"):
        read("1\twords\ttitle\n", "tsv")


@given(st.binary(max_size=200), st.sampled_from(["jsonl", "tsv"]))
def test_whatever_the_bytes_every_row_is_a_usable_passage_or_a_bad_row(junk: bytes, corpus_format: Format) -> None:
    header = b"id\ttext\ttitle\n" if corpus_format == "tsv" else b""
    for row in read(header + junk, corpus_format):
        assert isinstance(row, BadRow) or (row.passage_id.strip() and row.text.strip() and row.text.encode())


@pytest.mark.real_data
@pytest.mark.parametrize(("domain", "usable", "blank"), [("clapnq", 10_457, []), ("cloud", 11_724, [1, 679, 10_672])])
def test_real_corpora_hold_only_blank_passages_as_bad_rows(
    shared_data: Path, domain: str, usable: int, blank: list[int]
) -> None:
    path = shared_data / "mtrag" / domain / "corpus.jsonl.gz"
    with gzip.open(path) as stream:
        rows = list(read_passages(stream, str(path), "jsonl"))
    assert len({row.passage_id for row in rows if isinstance(row, Passage)}) == usable
    assert [row for row in rows if isinstance(row, BadRow)] == [
        BadRow(f"{path}:{line}", "field 'text' is empty") for line in blank
    ]
