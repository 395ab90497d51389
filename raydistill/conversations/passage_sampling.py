"""Passages of a corpus drawn by hashes of their ids: the same ones whatever the order of the corpus."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from raydistill.config import CorpusConfig
from raydistill.conversations.passages import BadRow, dataset_passages, read_passages
from raydistill.conversations.prepared import corpus_files
from raydistill.conversations.records import Passage
from raydistill.storage.files import open_input

T = TypeVar("T")


def sampled(passages: Iterable[Passage], number: int, seed: int, make: Callable[[Passage], T | None]) -> list[T]:
    """Return what is made of the passages whose ids have the smallest hashes, ascending; None is passed over.

    The order of the passages does not matter. Holds `number` of what is made.
    """
    kept: list[tuple[int, str, T]] = []  # a heap with the largest hash on top
    chosen: set[str] = set()
    for passage in passages:
        place = -id_hash(seed, passage.passage_id)
        if passage.passage_id in chosen or (len(kept) == number and place <= kept[0][0]):
            continue
        made = make(passage)
        if made is None:
            continue
        chosen.add(passage.passage_id)
        item = (place, passage.passage_id, made)
        if len(kept) < number:
            heapq.heappush(kept, item)
        else:
            chosen.remove(heapq.heapreplace(kept, item)[1])
    return [made for _, _, made in sorted(kept, key=lambda item: (-item[0], item[1]))]


def corpus_passages(corpus: CorpusConfig) -> Iterator[Passage]:
    """Yield the passages of a corpus in order; malformed rows are passed over. Raises StorageError for a missing file."""
    for uri in corpus_files(corpus.corpus, corpus.corpus_format):
        if corpus.corpus_dataset is not None:
            yield from _usable(dataset_passages(uri, corpus.corpus_dataset, corpus.corpus_columns))
            continue
        with open_input(uri) as stream:
            yield from _usable(read_passages(stream, uri, corpus.corpus_format, corpus.corpus_columns))


def _usable(rows: Iterable[Passage | BadRow]) -> Iterator[Passage]:
    return (row for row in rows if isinstance(row, Passage))


def id_hash(seed: int, text: str) -> int:
    """Return a number below 2**64 that depends on nothing but a seed and an id."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{text}".encode()).digest()[:8], "big")
