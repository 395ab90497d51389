"""Ranked results as values and as TREC files: the class `Run`, reading and writing runs, writing qrels.

Reading qrels belongs to `raydistill.conversations`; measuring belongs to `measures`.

A TREC run has six columns a line: query id, `Q0`, passage id, rank, score, tag. As in trec_eval the order is the score's:
the rank column is written but never read. Columns are separated by blanks and tabs only, so ids may hold anything else
(`dd6b6f<::>2`, `https://a/b?c=1`, non-breaking spaces).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from raydistill.errors import DataError
from raydistill.storage.files import open_input

_COLUMNS = re.compile(r"[ \t]+")
_UNWRITABLE = re.compile(r"[ \t\r\n]")

Qrels = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Run:
    """What one system retrieved.

    Attributes:
        name: the system; any text without line breaks.
        rankings: query id -> (passage id, score) pairs, best first (scores never ascend), no passage twice.

    Raises ValueError when a ranking breaks these rules.
    """

    name: str
    rankings: Mapping[str, tuple[tuple[str, float], ...]]

    def __post_init__(self) -> None:
        for query_id, ranking in self.rankings.items():
            if len({passage_id for passage_id, _ in ranking}) != len(ranking):
                raise ValueError(f"run {self.name!r} lists a passage twice for query {query_id!r}")
            if not all(higher >= lower for (_, higher), (_, lower) in pairwise(ranking)):
                raise ValueError(f"run {self.name!r} is not sorted by descending score for query {query_id!r}")

    def top(self, query_id: str, depth: int) -> tuple[str, ...]:
        """Return the ids of the best `depth` passages of a query, best first; empty for an unknown query."""
        return tuple(passage_id for passage_id, _ in self.rankings.get(query_id, ())[:depth])

    def scores(self, query_id: str) -> dict[str, float]:
        """Return passage id -> score of a query; empty for an unknown query."""
        return dict(self.rankings.get(query_id, ()))


def read_run(uri: str) -> Run:
    """Read a TREC run from a path or URI (compressed by suffix); the name is the tag of the first line.

    Raises:
        DataError: a malformed line, named by file and line.
        StorageError: the file cannot be read.
    """
    with open_input(uri) as stream:
        return parse_run(_decoded(stream, uri), uri)


def _decoded(stream: Iterable[bytes], place: str) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{place}:{number}: not UTF-8 ({error.reason}); convert the file to UTF-8") from None


def parse_run(lines: Iterable[str], place: str) -> Run:
    """Return the run written in lines of TREC format; `place` names their source in errors.

    Raises:
        DataError: not six columns, a score that is no finite number, a passage listed twice for a query, or no line at
            all; the message names place and line.
    """
    rankings: dict[str, dict[str, float]] = {}
    name = ""
    for number, line in enumerate(lines, start=1):
        text = line.strip(" \t\r\n")
        if not text:
            continue
        columns = _COLUMNS.split(text)
        if len(columns) != 6:
            raise DataError(
                f"{place}:{number}: a TREC run has 6 columns (query id, Q0, passage id, rank, score, tag), this line has "
                f"{len(columns)}; correct the line or write the run again"
            )
        query_id, _, passage_id, _, score_text, tag = columns
        name = name or tag
        ranking = rankings.setdefault(query_id, {})
        if passage_id in ranking:
            raise DataError(
                f"{place}:{number}: passage {passage_id!r} is listed twice for query {query_id!r}; remove one of the lines"
            )
        ranking[passage_id] = _score(score_text, f"{place}:{number}")
    if not rankings:
        raise DataError(f"{place}: the run holds no line; a run with no result at all is taken for a lost file")
    return Run(name, {query_id: _best_first(scores) for query_id, scores in rankings.items()})


def _score(text: str, place: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"{place}: the score {text!r} (column 5) is no finite number; correct the line")
    return score


def _best_first(scores: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    # Stable: equal scores keep the order of the file, so reading and writing a run again changes nothing.
    return tuple(sorted(scores.items(), key=lambda item: -item[1]))


def trec_run_lines(run: Run) -> Iterator[str]:
    """Yield the run in TREC format, one line a passage, ranks from 1; scores round-trip exactly.

    Raises:
        DataError: an id that holds a blank, a tab or a line break, which the format cannot hold.
    """
    tag = _UNWRITABLE.sub("_", run.name) or "run"
    for query_id, ranking in run.rankings.items():
        _check_id(query_id, "query", run.name)
        for rank, (passage_id, score) in enumerate(ranking, start=1):
            _check_id(passage_id, "passage", run.name)
            yield f"{query_id} Q0 {passage_id} {rank} {float(score)!r} {tag}\n"


def trec_qrels_lines(qrels: Qrels) -> Iterator[str]:
    """Yield qrels in TREC format: query id, 0, passage id, grade. Raises DataError for ids the format cannot hold."""
    for query_id, grades in qrels.items():
        _check_id(query_id, "query", "qrels")
        for passage_id, grade in grades.items():
            _check_id(passage_id, "passage", "qrels")
            yield f"{query_id} 0 {passage_id} {grade}\n"


def beir_qrels_lines(qrels: Qrels) -> Iterator[str]:
    """Yield qrels in BEIR format: a header, then query id, passage id, grade between tabs; blanks in ids are fine.

    Raises:
        DataError: an id that holds a tab or a line break.
    """
    yield "query-id\tcorpus-id\tscore\n"
    for query_id, grades in qrels.items():
        for passage_id, grade in grades.items():
            for identifier in (query_id, passage_id):
                if re.search(r"[\t\r\n]", identifier):
                    raise DataError(
                        f"qrels: the id {identifier!r} holds a tab or a line break, which BEIR files cannot hold"
                    )
            yield f"{query_id}\t{passage_id}\t{grade}\n"


def _check_id(identifier: str, what: str, where: str) -> None:
    if not identifier or _UNWRITABLE.search(identifier):
        raise DataError(
            f"{where}: the {what} id {identifier!r} is empty or holds a blank, a tab or a line break, which TREC files "
            "cannot hold; rename it in the collection"
        )
