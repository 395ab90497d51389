"""A re-index beside the live version: readers see the old one whole, then the new one whole, and the old one after a
roll-back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from change_world import TERMS, apply, build, random_vectors

from raydistill.encoders.batch import SparseBatch
from raydistill.index.publish import IndexVersion, current_version, load_version, make_current
from raydistill.index.search import open_searcher

NAMES = [f"p{number}" for number in range(30)]
QUERY = SparseBatch.from_rows([dict.fromkeys(range(TERMS), 1.0)], TERMS)


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh run root on each kind of store."""
    return f"file://{tmp_path}/runs" if request.param == "local" else str(request.getfixturevalue("s3_root"))


def answer(version: IndexVersion) -> tuple[int, list[tuple[str, float]]]:
    searcher = open_searcher(version)
    found = searcher.search(QUERY, 30)
    numbers = found.passages[0][found.passages[0] >= 0]
    return version.version, list(zip(searcher.passage_ids(numbers), found.scores[0].tolist(), strict=False))


class Readers:
    """Threads that open the current version and search it, again and again."""

    def __init__(self, root: str, number: int) -> None:
        self.seen: list[list[tuple[int, list[tuple[str, float]]]]] = [[] for _ in range(number)]
        self.failed: list[Exception] = []
        self._root = root
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(seen,)) for seen in self.seen]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, version: int) -> None:
        """Return when every reader has answered from the version after now."""
        since = [len(seen) for seen in self.seen]
        while not self.failed and not all(
            any(number == version for number, _ in seen[start:]) for seen, start in zip(self.seen, since, strict=True)
        ):
            self._stop.wait(0.01)

    def _read(self, seen: list[tuple[int, list[tuple[str, float]]]]) -> None:
        try:
            while not self._stop.is_set():
                seen.append(answer(current_version(self._root, "passages")))
        except Exception as error:
            self.failed.append(error)


def runs(numbers: Iterator[int]) -> list[int]:
    """Return the numbers without immediate repetitions."""
    kept: list[int] = []
    for number in numbers:
        if kept[-1:] != [number]:
            kept.append(number)
    return kept


def test_readers_see_the_old_index_then_the_new_one_then_the_old_one_again(root: str) -> None:
    old = build(root, random_vectors(NAMES, 1))
    expected = {1: answer(old)[1]}
    with Readers(root, 3) as readers:
        readers.wait_for(1)
        new = build(root, random_vectors(NAMES, 2), impacts="f16", rows=7)  # as another encoder would
        expected[2] = answer(new)[1]
        readers.wait_for(2)
        make_current(old, older=True)
        readers.wait_for(1)
        third = apply(old, "delete", ids=NAMES[:10])  # the old one can be changed again
        expected[3] = answer(third)[1]
        readers.wait_for(3)
    assert not readers.failed
    assert expected[1] != expected[2]
    for seen in readers.seen:
        assert all(found == expected[number] for number, found in seen), "never a mixture"
        assert runs(number for number, _ in seen) == [1, 2, 1, 3]
    assert answer(load_version(root, "passages", 2))[1] == expected[2], "it can be gone forward to as well"
    assert np.isfinite([score for _, score in expected[3]]).all()
