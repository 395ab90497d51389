"""Relevance judgements: reading BEIR and TREC qrels, and checking them against a collection. Measures live in evaluation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from raydistill.conversations.rows import BadRow, Line, RowError, numbered_lines
from raydistill.errors import DataError
from raydistill.storage.files import open_input

_GRADE = re.compile(r"-?[0-9]{1,9}", re.ASCII)

Qrels = dict[str, dict[str, int]]
_HEADER_STARTS = ("query-id", "query_id", "qid")


@dataclass(frozen=True, slots=True)
class Judgement:
    """One line of qrels and its place ("file:line")."""

    query_id: str
    passage_id: str
    grade: int
    place: str


def read_qrels(uri: str) -> Qrels:
    """Read judgements: query id -> passage id -> grade.

    Two formats are told apart line by line: BEIR (tab-separated query-id, corpus-id, score, with or without its header)
    and TREC (white-space separated query id, iteration, passage id, grade). Grades below 0 (spam) are kept as they are.

    Raises:
        DataError: naming file and line: a wrong number of columns, a grade that is no integer, bytes that are not
            UTF-8, or two different grades for one pair.
    """
    qrels: Qrels = {}
    for row in judgement_rows(uri):
        if isinstance(row, BadRow):
            raise DataError(f"{row.place}: {row.reason}; correct the line")
        problem = add_judgement(qrels, row)
        if problem:
            raise DataError(f"{problem.place}: {problem.reason}; keep one of them")
    return qrels


def judgement_rows(uri: str) -> Iterator[Judgement | BadRow]:
    """Yield every line of a qrels file as a Judgement, or as a BadRow where it cannot be one."""
    with open_input(uri) as stream:
        first = True
        for line in numbered_lines(stream, uri):
            header = first and isinstance(line, Line) and line.text.split("\t")[0].strip().lower() in _HEADER_STARTS
            first = False
            if header:
                continue
            yield line if isinstance(line, BadRow) else _judgement_or_bad_row(line)


def add_judgement(qrels: Qrels, judgement: Judgement) -> BadRow | None:
    """Add a judgement; a repetition is harmless, a contradiction is returned and not added."""
    grades = qrels.setdefault(judgement.query_id, {})
    earlier = grades.setdefault(judgement.passage_id, judgement.grade)
    if earlier == judgement.grade:
        return None
    pair = f"query {judgement.query_id!r}, passage {judgement.passage_id!r}"
    return BadRow(judgement.place, f"judges {pair} as {judgement.grade}, an earlier line as {earlier}")


def check_qrels(qrels: Mapping[str, Mapping[str, int]], find: Callable[[Sequence[str]], Iterable[int]], source: str) -> None:
    """Raise DataError when a judged passage is not in the collection; its line is named when `source` is a qrels file.

    Args:
        find: returns a passage number for each id, negative for an unknown one (`Searcher.find`).
        source: URI of the qrels or of the conversation file that holds the gold passages.
    """
    judged = sorted({passage_id for grades in qrels.values() for passage_id in grades})
    unknown = {passage_id for passage_id, number in zip(judged, find(judged), strict=True) if number < 0}
    if not unknown:
        return
    place, query_id, passage_id = _first_judgement_of(unknown, qrels, source)
    raise DataError(
        f"{place}: passage {passage_id!r}, judged for query {query_id!r}, is not in the corpus "
        f"({len(unknown)} of {len(judged)} judged passages are not); check that data.corpus and the qrels belong together"
    )


def _first_judgement_of(unknown: set[str], qrels: Mapping[str, Mapping[str, int]], source: str) -> tuple[str, str, str]:
    try:
        for row in judgement_rows(source):
            if isinstance(row, Judgement) and row.passage_id in unknown and row.query_id in qrels:
                return row.place, row.query_id, row.passage_id
    except DataError:
        pass  # not a qrels file: the conversation file itself holds the judgements
    return next((source, query_id, each) for query_id, grades in qrels.items() for each in grades if each in unknown)


def _judgement_or_bad_row(line: Line) -> Judgement | BadRow:
    try:
        query_id, passage_id, grade = _fields(line.text)
    except RowError as error:
        return BadRow(line.place, str(error))
    return Judgement(query_id, passage_id, grade, line.place)


def _fields(text: str) -> tuple[str, str, int]:
    columns = [column.strip() for column in text.split("\t")]
    if len(columns) != 3:
        columns = text.split()
        if len(columns) == 4:
            columns = [columns[0], *columns[2:]]
    if len(columns) != 3 or not columns[0] or not columns[1]:
        raise RowError("is neither BEIR qrels (query-id<TAB>corpus-id<TAB>score) nor TREC qrels (query 0 passage grade)")
    query_id, passage_id, grade = columns
    if not _GRADE.fullmatch(grade):
        raise RowError(f"grade {grade!r} is not an integer")
    return query_id, passage_id, int(grade)
