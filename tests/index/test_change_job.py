"""Changes of a built index on Ray: encoded as the index was, resumable, compacted to the same bytes by any pool."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from raydistill.config import (
    ConversationSource,
    CorpusConfig,
    DataConfig,
    DistillConfig,
    IndexConfig,
    PoolConfig,
    RecordedTeacherConfig,
    SpladeDocumentsConfig,
    StudentConfig,
)
from raydistill.encoders.documents import load_document_encoder
from raydistill.errors import ConfigError, DataError
from raydistill.index import change_job
from raydistill.index.build import build_index
from raydistill.index.change_job import (
    append_passages,
    compact_index,
    delete_passages,
    drift_advice,
    pinned_versions,
    replace_passages,
)
from raydistill.index.corpus import prepare_corpus
from raydistill.index.publish import IndexVersion, current_version, load_version
from raydistill.index.search import open_searcher
from raydistill.storage.store import open_store

WORDS = ["river", "mountain", "paris", "france", "capital", "music", "piano", "tower", "bridge", "history", "war", "king"]
pytestmark = pytest.mark.usefixtures("ray_cluster")


def records(names: list[str], seed: int = 7) -> list[dict[str, str]]:
    rng = np.random.default_rng(seed)
    return [{"_id": name, "title": f"Page {name}", "text": " ".join(rng.choice(WORDS, size=9))} for name in names]


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(first: int, last: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{number}" for number in range(first, last)]


class World:
    """A corpus of two files and the configuration that indexes it."""

    def __init__(self, folder: Path, student: str, **index: object) -> None:
        self.folder = folder
        self.files = [
            write(folder / "1.jsonl", records(numbered(0, 70))),
            write(folder / "2.jsonl", records(numbered(70, 90))),
        ]
        self.student = student
        self.settings = {"passages_per_segment": 25, "impacts": "f32", "workers": PoolConfig(cpus=0.5), **index}

    @property
    def config(self) -> DistillConfig:
        source = ConversationSource(conversations="/unused")
        return DistillConfig(
            run="test",
            root=str(self.folder / "root"),
            data=DataConfig(corpus=tuple(self.files), train=source, test=source),
            teachers=(RecordedTeacherConfig(name="one", rewrites="/unused"),),
            student=StudentConfig(model=self.student),
            index=IndexConfig.model_validate(self.settings),
        )

    def build(self) -> IndexVersion:
        config = self.config
        corpus = prepare_corpus(config.data, config.index.passages_per_segment, config.index.workers, config.root)
        return build_index(config.index, config.student, corpus, config.root)

    def passages(self, name: str, rows: list[dict[str, str]]) -> CorpusConfig:
        return CorpusConfig(corpus=(write(self.folder / name, rows),))


def splade_world(folder: Path, minilm: str, **index: object) -> World:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder / "splade")
    tokenizer.save_pretrained(folder / "splade")
    documents = SpladeDocumentsConfig(model=str(folder / "splade"), max_terms=30)
    return World(folder, str(folder / "splade"), documents=documents, **index)


@pytest.fixture(scope="module")
def lexical(tmp_path_factory, ray_cluster, minilm) -> Path:
    folder = tmp_path_factory.mktemp("lexical")
    World(folder, minilm).build()
    return folder


@pytest.fixture
def world(tmp_path, lexical, minilm) -> World:
    shutil.copytree(lexical, tmp_path, dirs_exist_ok=True)
    return World(tmp_path, minilm)


def texts(rows: list[dict[str, str]]) -> list[str]:
    return [f"{row['title']}\n{row['text']}" for row in rows]


def results(version: IndexVersion, world: World, k: int = 100) -> list[list[tuple[str, float]]]:
    config = world.config
    encoder = load_document_encoder(config.index.documents, config.student, version.open_statistics(), "cpu")
    searcher = open_searcher(version)
    found = searcher.search(encoder.encode_queries(["river king", "paris capital of france", "piano music", *WORDS]), k)
    return [
        list(zip(searcher.passage_ids(numbers[numbers >= 0]), scores[numbers >= 0].tolist(), strict=True))
        for numbers, scores in zip(found.passages, found.scores, strict=True)
    ]


def test_a_lexical_index_is_changed_under_the_statistics_it_was_built_with(world):
    first = current_version(world.config.root, "passages")
    new = records(numbered(0, 30, "n"), seed=1)
    report = append_passages(world.config, world.passages("new.jsonl", new))
    version = report.version
    assert report.changed
    assert (version.version, version.live, version.metadata["base"]) == (2, 120, 1)
    assert [each.passages for each in version.segments] == [25, 25, 20, 20, 25, 5]
    assert version.segments[:4] == first.segments
    encoder = load_document_encoder(world.config.index.documents, world.config.student, first.open_statistics())
    expected = encoder.encode_passages(texts(new))
    stored = open_searcher(version).vectors(open_searcher(version).find(numbered(0, 30, "n")))
    np.testing.assert_array_equal(stored.term_ids, expected.term_ids)
    np.testing.assert_array_equal(stored.weights, expected.weights)
    assert version.metadata["drift"]["changed_share"] == pytest.approx(30 / 90)
    assert "33.3% of the passages" in drift_advice(version, world.config.index)
    assert drift_advice(first, world.config.index) is None

    other = records(["p3", "p4", "p89"], seed=2)
    version = replace_passages(world.config, world.passages("other.jsonl", other)).version
    assert (version.live, version.deleted) == (120, 3)
    [stored] = [open_searcher(version).vectors(open_searcher(version).find(["p4"]))]
    np.testing.assert_array_equal(stored.weights, encoder.encode_passages(texts(other)).row(1)[1])
    version = delete_passages(world.config, ["p0", "n1"]).version
    assert open_searcher(version).find(["p0", "n1", "n2"]).tolist() == [-1, -1, 92]
    assert version.metadata["corpora"][0] == first.metadata["corpus"]
    assert len(version.metadata["corpora"]) == 3
    assert version.metadata["changed"] == {"added": 33, "deleted": 5}
    assert version.open_statistics() == first.open_statistics()


def test_bad_changes_are_refused_with_counts_and_the_way_out(world, monkeypatch):
    config = world.config
    both = world.passages("both.jsonl", records(["p1", "p2", "fresh"]))
    monkeypatch.setattr(change_job, "run_parts", None)  # nothing may be encoded
    with pytest.raises(DataError, match=r"2 of 3 passages to append are in .*'p1', 'p2'.*use replace"):
        append_passages(config, both)
    with pytest.raises(DataError, match=r"1 of 3 passages to replace are not in .*'fresh'.*--missing ok to add"):
        replace_passages(config, both)
    with pytest.raises(DataError, match=r"2 of 3 passages to delete are not in .*'x', 'y'.*--missing ok to go on"):
        delete_passages(config, ["p1", "x", "y", "x"])
    with pytest.raises(DataError, match="no id to delete"):
        delete_passages(config, [])
    twice = world.passages("twice.jsonl", records(["a", "a"]))
    with pytest.raises(DataError, match=r"twice\.jsonl:2: repeats the id 'a'"):
        append_passages(config, twice)
    other = config.model_copy(update={"student": StudentConfig(model=str(other_tokenizer(world.folder, world.student)))})
    with pytest.raises(ConfigError, match=r"was built by the encoder .* use the models it was built with"):
        append_passages(other, world.passages("new.jsonl", records(["a"])))
    assert current_version(config.root, "passages").version == 1
    version = delete_passages(config, ["p1", "x", "y"], missing_ok=True).version
    assert version.metadata["change"] == {**version.metadata["change"], "deleted": 1, "unknown": 2, "examples": ["x", "y"]}


def other_tokenizer(folder: Path, like: str) -> Path:
    shutil.copytree(like, folder / "other")
    (folder / "other" / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    return folder / "other"


def test_a_repeated_or_interrupted_command_changes_the_index_once(world, monkeypatch):
    config, new = world.config, world.passages("new.jsonl", records(numbered(0, 60, "n"), seed=1))

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(change_job, "_commit", dies)
        with pytest.raises(KeyboardInterrupt):
            append_passages(config, new)
    store, built = open_store(config.root), {segment.key for segment in current_version(config.root, "passages").segments}
    objects = [info.key for info in store.list("indexes/passages/segments/")]
    assert len(objects) == len(built) + 3
    store.delete(min(set(objects) - built))  # as if the crash had come before it was stored
    report = append_passages(config, new)
    assert report.changed
    assert [info.key for info in store.list("indexes/passages/segments/")] == objects, "the same bytes again"
    again = append_passages(config, new)
    assert (again.changed, again.version) == (False, report.version)
    assert report.version.live == 150
    later = delete_passages(config, ["p0"]).version
    again = append_passages(config, new)
    assert (again.changed, again.version) == (False, later), "others may have changed the index since"


@pytest.mark.slow  # minutes on two cores; lexical indexes, below and above, go the same way
def test_a_splade_index_after_changes_equals_one_built_of_what_it_holds(tmp_path, minilm):
    world = splade_world(tmp_path, minilm)
    world.build()
    new, other = records(numbered(0, 30, "n"), seed=1), records(numbered(10, 40), seed=2)
    append_passages(world.config, world.passages("new.jsonl", new))
    replace_passages(world.config, world.passages("other.jsonl", other))
    changed = delete_passages(world.config, numbered(0, 5)).version
    compacted = compact_index(world.config).version
    assert compacted.deleted == 0
    assert results(compacted, world) == results(changed, world), "ids and scores to the bit"
    left = [row for row in records(numbered(0, 70)) if 5 <= int(row["_id"][1:]) < 10 or int(row["_id"][1:]) >= 40]
    world.files = [write(tmp_path / "left.jsonl", [*left, *records(numbered(70, 90)), *new, *other])]
    built = world.build()
    assert (built.live, compacted.live) == (115, 115)
    for found, expected in zip(results(compacted, world), results(built, world), strict=True):
        assert [name for name, _ in found] == [name for name, _ in expected]
        np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], rtol=1e-5)
    frequencies = [version.open_frequencies() for version in (compacted, built)]
    assert frequencies[0] == frequencies[1]
    assert {**compacted.metadata["summary"], "bytes": 0, "segments": 0, "max_impact": 0} == {
        **built.metadata["summary"],
        "bytes": 0,
        "segments": 0,
        "max_impact": 0,
    }


@pytest.mark.slow  # a minute or two on two cores
def test_build_and_compaction_give_the_same_bytes_by_any_number_of_workers(tmp_path, minilm):
    made = []
    for actors in (1, 3):
        (tmp_path / str(actors)).mkdir()
        workers = PoolConfig(actors=actors, cpus=0.4)
        world = World(tmp_path / str(actors), minilm, impacts="f16", passages_per_segment=8, workers=workers)
        world.build()
        world.settings["passages_per_segment"] = 30
        before = delete_passages(world.config, [f"p{number}" for number in range(0, 90, 3)]).version
        after = compact_index(world.config).version
        assert (after.deleted, after.live) == (0, 60)
        assert len(after.segments) < len(before.segments)
        assert results(after, world) == results(before, world)
        made.append([[segment.sha256 for segment in version.segments] for version in (before, after)])
    assert made[0] == made[1]


def test_a_compaction_that_was_interrupted_goes_on_where_it_was(world, monkeypatch):
    delete_passages(world.config, numbered(20, 80))

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(change_job, "_commit", dies)
        with pytest.raises(KeyboardInterrupt):
            compact_index(world.config)
    monkeypatch.setattr(change_job, "_Rewriter", None)  # nothing is rewritten again
    report = compact_index(world.config)
    assert report.changed
    assert [(each.passages, each.live) for each in report.version.segments] == [(25, 20), (10, 10)]
    assert not compact_index(world.config).changed
    assert pinned_versions(report.version) == {}
    assert load_version(world.config.root, "passages", 1).live == 90


@pytest.mark.slow  # minutes on two cores; lexical indexes, below and above, go the same way
def test_after_a_change_of_one_file_only_its_parts_are_encoded_again(tmp_path, minilm, monkeypatch):
    world = splade_world(tmp_path, minilm, impacts="f16")
    first = world.build()
    append_passages(world.config, world.passages("new.jsonl", records(numbered(0, 25, "n"), seed=1)))
    write(tmp_path / "2.jsonl", records(numbered(70, 95), seed=3))
    world.files += [write(tmp_path / "3.jsonl", records(numbered(0, 25, "n"), seed=1))]
    second = world.build()
    assert second.version == 3
    assert [segment.key for segment in second.segments[:3]] == [segment.key for segment in first.segments[:3]]
    encoding = second.metadata["encoding"]
    assert (encoding["reused_segments"], encoding["reused_passages"], encoding["passages"]) == (4, 95, 25)
    fresh = splade_world_like(world, tmp_path / "fresh").build()
    assert [segment.sha256 for segment in fresh.segments] == [segment.sha256 for segment in second.segments]
    assert fresh.open_statistics() == second.open_statistics()
    assert fresh.fingerprint == second.fingerprint
    # What was taken over and lost is made again, where it was.
    store = open_store(world.config.root)
    store.delete(second.segments[1].key)
    assert world.build() == second
    assert store.info(second.segments[1].key) is not None


def splade_world_like(world: World, folder: Path) -> World:
    folder.mkdir()
    other = World(folder, world.student, **world.settings)
    other.files = world.files
    return other


def test_a_lexical_index_takes_over_only_what_has_the_same_statistics(world):
    first = current_version(world.config.root, "passages")
    world.files.reverse()
    reordered = world.build()
    assert reordered.metadata["encoding"]["reused_segments"] == 4
    assert {segment.key for segment in reordered.segments} == {segment.key for segment in first.segments}
    assert open_searcher(reordered).find(["p70", "p0"]).tolist() == [0, 20]
    world.files.pop()
    assert world.build().metadata["encoding"]["reused_segments"] == 0
