"""Any sequence of changes, compactions and roll-backs leaves the index that a dictionary says."""

from __future__ import annotations

import shutil
import tempfile

import numpy as np
import pytest
from change_world import TERMS, Vectors, build, change, compaction, frequency, random_vectors
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.lexical import LexicalStatistics
from raydistill.errors import DataError
from raydistill.evaluation.query_worker import passage_share
from raydistill.index.changes import PassageChange
from raydistill.index.commit import commit_change
from raydistill.index.forward import document_frequency, document_share
from raydistill.index.publish import IndexVersion, current_version, load_version, make_current
from raydistill.index.search import open_searcher
from raydistill.storage.store import open_store

NAMES = [f"p{number}" for number in range(14)]
QUERIES = SparseBatch.from_rows([{0: 1.0}, {1: 1.0, 2: 2.0}, dict.fromkeys(range(TERMS), 1.0), {11: 3.0, 4: 1.0}, {}], TERMS)
names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True)
seeds = st.integers(0, 10_000)


def best(vectors: Vectors, k: int) -> list[list[tuple[str, float]]]:
    """Return (id, score) of the best passages of every query, ties by order of the vectors."""
    dense = QUERIES.to_dense().astype(np.float64)
    found = []
    for query in dense:
        scored = [(name, sum(query[term] * weight for term, weight in row.items())) for name, row in vectors.items()]
        found.append(sorted([pair for pair in scored if pair[1] > 0], key=lambda pair: -pair[1])[:k])
    return found


class Changes(RuleBasedStateMachine):
    """The model is a dictionary of vectors in order of their numbers, one for each version that was ever current."""

    @initialize(first=names, seed=seeds, impacts=st.sampled_from(["f32", "f16"]))
    def start(self, first: list[str], seed: int, impacts: str) -> None:
        self.folder = tempfile.mkdtemp()
        vectors = random_vectors(first, seed)
        self.version = build(f"file://{self.folder}", vectors, impacts)  # type: ignore[arg-type]
        self.models: dict[int, dict[str, dict[int, float]]] = {1: vectors}

    @property
    def model(self) -> dict[str, dict[int, float]]:
        return self.models[self.version.version]

    def _became(self, version: IndexVersion, model: dict[str, dict[int, float]]) -> None:
        assert version.version == max(self.models) + 1
        self.version, self.models[version.version] = version, model

    def _repeats(self, made: PassageChange) -> bool:
        """Whether the command is what the current version came from, or all of its segments are there untouched."""
        untouched = {segment.key for segment in self.version.segments if segment.tombstone is None}
        there = made.new is not None and untouched.issuperset(segment.key for segment in made.new.segments)
        return there or self.version.metadata.get("change", {}).get("request") == made.request

    def _run(self, made: PassageChange, model: dict[str, dict[int, float]], refused: str) -> None:
        """Commit a change: a repeated one changes nothing, one that cannot work is refused, any other gives the model."""
        if self._repeats(made):
            assert commit_change(self.version.root, "passages", made) == self.version
        elif refused:
            with pytest.raises(DataError, match=refused):
                commit_change(self.version.root, "passages", made)
        else:
            version = commit_change(self.version.root, "passages", made)
            if made.new is None and model == self.model:
                assert version == self.version
            else:
                self._became(version, model)
                assert commit_change(version.root, "passages", made) == version

    @rule(chosen=names, seed=seeds)
    def append(self, chosen: list[str], seed: int) -> None:
        vectors = random_vectors(chosen, seed)
        known = [name for name in chosen if name in self.model]
        refused = rf"{len(known)} of {len(chosen)} passages to append are in .*use replace" if known else ""
        self._run(change(self.version, "append", vectors), {**self.model, **vectors}, refused)

    @rule(chosen=names, seed=seeds, missing_ok=st.booleans())
    def replace(self, chosen: list[str], seed: int, missing_ok: bool) -> None:
        vectors = random_vectors(chosen, seed)
        missing = [name for name in chosen if name not in self.model]
        kept = {name: row for name, row in self.model.items() if name not in vectors}
        refused = rf"{len(missing)} of {len(chosen)} passages to replace are not in" if missing and not missing_ok else ""
        self._run(change(self.version, "replace", vectors, missing_ok=missing_ok), {**kept, **vectors}, refused)

    @rule(chosen=names, missing_ok=st.booleans())
    def delete(self, chosen: list[str], missing_ok: bool) -> None:
        missing = [name for name in chosen if name not in self.model]
        kept = {name: row for name, row in self.model.items() if name not in chosen}
        refused = rf"{len(missing)} of {len(chosen)} passages to delete are not in" if missing and not missing_ok else ""
        self._run(change(self.version, "delete", ids=chosen, missing_ok=missing_ok), kept, refused)

    @rule(full=st.integers(2, 9), least_fill=st.sampled_from([0.3, 1.0]), most_deleted=st.sampled_from([0.0, 0.4]))
    def compact(self, full: int, least_fill: float, most_deleted: float) -> None:
        made = compaction(self.version, full, least_fill, most_deleted)
        version = commit_change(self.version.root, "passages", made)
        if version == self.version:
            return
        assert all(segment.tombstone is None for segment in version.segments) or most_deleted or not self.model
        self._became(version, dict(self.model))

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.models)))
        self.version = load_version(self.version.root, "passages", number)
        make_current(self.version, older=True)

    @invariant()
    def searches_like_the_model(self) -> None:
        current = current_version(self.version.root, "passages")
        assert current == self.version
        searcher = open_searcher(current)
        for k in (1, 3, 50):
            found = searcher.search(QUERIES, k)
            for row, expected in enumerate(best(self.model, k)):
                numbers = found.passages[row][found.passages[row] >= 0]
                pairs = list(zip(searcher.passage_ids(numbers), found.scores[row].tolist(), strict=False))
                assert pairs == expected
        numbers = searcher.find(NAMES)
        assert [name for name, number in zip(NAMES, numbers, strict=True) if number >= 0] == sorted(
            self.model, key=NAMES.index
        )

    @invariant()
    def tells_the_truth_about_itself(self) -> None:
        version, expected = self.version, frequency(self.model)
        np.testing.assert_array_equal(document_frequency(version), expected)
        np.testing.assert_allclose(document_share(version), expected / max(1, len(self.model)), rtol=1e-6)
        np.testing.assert_allclose(passage_share(open_searcher(version)), expected / max(1, len(self.model)))
        assert version.live == len(self.model)
        assert version.passages - version.deleted == version.live
        content = version.open_frequencies()
        assert content is not None
        np.testing.assert_array_equal(LexicalStatistics.from_bytes(content).document_frequency, expected)
        if version.version > 1:
            summary = version.metadata["summary"]
            assert (summary["passages"], summary["postings"]) == (len(self.model), int(expected.sum()))
        keys = {info.key for info in open_store(version.root).list("indexes/")}
        assert version.object_keys <= keys

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


TestChanges = Changes.TestCase
TestChanges.settings = settings(
    max_examples=25, stateful_step_count=10, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
