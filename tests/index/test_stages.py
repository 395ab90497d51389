"""Index and mining on Ray: complete, exact, and resumable."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage_world import (
    WORKERS,
    World,
    data_config,
    lexical_config,
    passages,
    save_tiny_splade,
    uncommit,
    write_jsonl,
)

from raydistill.config import (
    SpladeDocumentsConfig,
    StudentConfig,
)
from raydistill.conversations.text import history_pairs, student_text
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.checkpoint import load_student
from raydistill.encoders.documents import load_document_encoder
from raydistill.encoders.lexical import LexicalStatistics
from raydistill.errors import DataError
from raydistill.index.build import build_index, planned_index
from raydistill.index.changes import PassageChange
from raydistill.index.commit import commit_change
from raydistill.index.corpus import prepare_corpus
from raydistill.index.earlier_student import scale_to_teachers
from raydistill.index.mine import candidates_artifact, mine_candidates
from raydistill.index.publish import IndexVersion, current_version
from raydistill.index.search import open_searcher
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.storage.folders import put_folder
from raydistill.storage.store import open_store

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def indexed(tmp_path_factory, ray_cluster, minilm) -> Path:
    """A run root with a corpus and its index, made once; tests work on copies, which a run root survives."""
    folder = tmp_path_factory.mktemp("indexed")
    lost = {"_id": "p999", "title": "an empty passage, quarantined", "text": ""}
    data = data_config([write_jsonl(folder / "corpus.jsonl", [*passages(230), lost])], max_bad_rows=1)
    corpus = prepare_corpus(data, 100, WORKERS, str(folder / "root"))
    build_index(lexical_config(), StudentConfig(model=minilm), corpus, str(folder / "root"))
    return folder


@pytest.fixture
def copied(tmp_path, indexed) -> Path:
    return Path(shutil.copytree(indexed, tmp_path, dirs_exist_ok=True))


@pytest.fixture
def corpus(copied) -> Artifact:
    return prepare_corpus(data_config([str(copied / "corpus.jsonl")], max_bad_rows=1), 100, WORKERS, str(copied / "root"))


# Index.


def test_a_lexical_index_holds_the_vectors_of_the_encoder_for_the_whole_corpus(tmp_path, corpus, minilm):
    student, root = StudentConfig(model=minilm), str(tmp_path / "root")
    assert planned_index(lexical_config(impacts="u8"), student, corpus, root) is None
    version = build_index(lexical_config(), student, corpus, root)
    assert [segment.passages for segment in version.segments] == [100, 100, 30]
    assert version.passages == 230
    searcher = open_searcher(version)
    statistics = version.open_statistics()
    encoder = load_document_encoder(lexical_config().documents, student, statistics)
    expected = encoder.encode_passages([f"{each['title']}\n{each['text']}" for each in passages(230)])
    stored = searcher.vectors(np.arange(230))
    np.testing.assert_array_equal(stored.indptr, expected.indptr)
    np.testing.assert_array_equal(stored.term_ids, expected.term_ids)
    np.testing.assert_array_equal(stored.weights, expected.weights)
    assert version.vocabulary_size == encoder.vocabulary_size == stored.vocabulary_size
    frequency = LexicalStatistics.from_bytes(statistics).document_frequency
    np.testing.assert_array_equal(frequency, np.bincount(stored.term_ids, minlength=version.vocabulary_size))
    assert searcher.passage_ids([0, 229]) == ["p0", "p229"]
    assert searcher.find(["p150", "nowhere"]).tolist() == [150, -1]
    assert current_version(root, "passages") == version == planned_index(lexical_config(), student, corpus, root)
    assert build_index(lexical_config(), student, corpus, root) == version
    open_store(root).delete(version.segments[0].key)
    assert planned_index(lexical_config(), student, corpus, root) is None, "a lost segment is to be built again"


def test_a_half_done_index_is_completed_to_the_same_bytes(tmp_path, corpus, minilm):
    student, root = StudentConfig(model=minilm), str(tmp_path / "root")
    version = build_index(lexical_config(), student, corpus, root)
    store = open_store(root)
    kept = version.segments[1]
    for info in list(store.list("indexes/")):
        lost = any(piece in info.key for piece in ("manifests", "CURRENT", "statistics"))
        if lost or ("receipts" in info.key and kept.name not in info.key):
            store.delete(info.key)
    store.delete(version.segments[0].key)
    [lexicon] = {info.key.rsplit("/", 2)[0] for info in store.list("artifacts/lexicon/") if "_receipts" in info.key}
    store.delete(f"{lexicon}/_manifest.json")
    store.delete(f"{lexicon}/_receipts/00000-00002.json")
    again = build_index(lexical_config(), student, corpus, root)
    assert again.segments == version.segments
    timed = version.metadata["encoding"]
    assert again.metadata == {**version.metadata, "encoding": again.metadata["encoding"]}
    assert again.metadata["encoding"]["passages"] == timed["passages"] == 230


def test_other_parameters_or_precision_make_another_version(tmp_path, corpus, minilm):
    student, root = StudentConfig(model=minilm), str(tmp_path / "root")
    first = build_index(lexical_config(), student, corpus, root)
    other = build_index(lexical_config(documents={"kind": "lexical", "k1": 1.5}), student, corpus, root)
    assert (first.version, other.version) == (1, 2)
    assert current_version(root, "passages").version == 2
    assert build_index(lexical_config(), student, corpus, root) == first


def test_a_splade_index_counts_the_frequencies_of_its_vectors(tmp_path, corpus, minilm):
    folder = str(tmp_path / "splade")
    save_tiny_splade(folder, minilm)
    config = lexical_config(documents=SpladeDocumentsConfig(model=folder, max_terms=40))
    version = build_index(config, StudentConfig(model=folder), corpus, str(tmp_path / "root"))
    stored = open_searcher(version).vectors(np.arange(230))
    frequency = LexicalStatistics.from_bytes(version.open_statistics()).document_frequency
    np.testing.assert_array_equal(frequency, np.bincount(stored.term_ids, minlength=version.vocabulary_size))
    assert 0 < stored.lengths().max() <= 40


def test_an_index_says_what_encoding_it_took(tmp_path, corpus, minilm, caplog):
    folder = str(tmp_path / "splade")
    save_tiny_splade(folder, minilm)
    config = lexical_config(documents=SpladeDocumentsConfig(model=folder, max_tokens=14, min_weight=100))
    with caplog.at_level("INFO", logger="raydistill"):
        version = build_index(config, StudentConfig(model=folder), corpus, str(tmp_path / "root"))
    found = version.metadata["encoding"]
    # Page N and twelve words of one token each, and two special tokens: more than 14. No weight is above 100.
    assert (found["passages"], found["truncated"], found["without_terms"], found["malformed"]) == (230, 230, 230, 1)
    assert (found["tokens"], found["padded_tokens"], found["padding_share"]) == (230 * 14, 230 * 14, 0.0)
    assert 0 < found["compute_seconds"] < found["worker_seconds"]
    assert found["passages_per_second"] == pytest.approx(230 / found["worker_seconds"])
    assert found["waiting_share"] == pytest.approx(1 - found["compute_seconds"] / found["worker_seconds"])
    assert "230 cut at the encoder's limit, 230 without terms; 1 malformed" in caplog.text


# Mining.


def test_candidates_are_the_union_with_gold_and_every_score_is_exact(copied, minilm):
    world = World(copied, minilm, {"c0::1": {"p3": 1, "p200": 2, "p7": 0}, "c2::2": {"p17": 1}})
    mined = world.mine()
    manifest = mined.manifest()
    rows = [row for part in manifest.parts for row in pq.read_table(mined.fetch(part)).to_pylist()]
    assert [part.rows for part in manifest.parts] == [5, 5, 2]
    assert [row["query_id"] for row in rows] == [query.query_id for query in world.queries]
    assert manifest.metadata["teachers"] == ["one", "two"]
    version = IndexVersion.from_json(manifest.metadata["index"])
    searcher = open_searcher(version)
    dense = searcher.vectors(np.arange(230)).to_dense()
    encoder = load_document_encoder(world.config.index.documents, world.config.student, version.open_statistics())
    for row, query in zip(rows, world.queries, strict=True):
        gold = {"c0::1": [3, 200], "c2::2": [17]}.get(query.query_id, [])
        assert row["gold"] == gold
        pool = set(gold)
        assert row["source"] == ""
        for number, (teacher, column) in enumerate(zip(("one", "two"), row["scores"], strict=True)):
            text = world.texts[teacher].get(query.query_id)
            terms, weights = row["rewrite_terms"][number], row["rewrite_weights"][number]
            if text is None:
                assert column is terms is weights is None
                continue
            vector = encoder.encode_queries([text])
            assert terms == vector.term_ids.tolist()
            assert weights == vector.weights.tolist()
            scores = dense @ vector.to_dense()[0]
            best = [p for p in np.lexsort((np.arange(230), -searcher.scores(vector, [np.arange(230)])[0])) if scores[p] > 0]
            pool |= set(best[:15])
            np.testing.assert_allclose(column, scores[row["passages"]], rtol=1e-5)
        assert row["passages"] == sorted(pool)
        assert row["history"] == [{"question": turn.question, "answer": turn.answer} for turn in query.history]
        assert (row["conversation_id"], row["depth"]) == (query.conversation_id, query.depth)
    counters = manifest.metadata["counters"]
    assert counters["queries"] == 12
    assert counters["gold"] == 3
    assert (counters["rewrites.one"], counters["rewrites.two"]) == (12, 10)
    assert counters["candidates"] == sum(len(row["passages"]) for row in rows)


def tiny_student(world: World, folder: Path, minilm: str) -> Artifact:
    save_tiny_splade(str(folder), minilm)
    student = Artifact(world.config.root, "student", "tiny", fingerprint("student", 1, {}, {}))
    ArtifactWriter(student).commit(put_folder(ArtifactWriter(student), folder), {})
    return student


def test_a_further_round_adds_what_the_student_finds_and_every_teacher_scores_it(copied, minilm):
    world = World(copied, minilm, {"c0::1": {"p3": 1, "p200": 2}})
    first, index = world.mine(), world.index()
    student = tiny_student(world, copied / "student", minilm)
    mined = mine_candidates(world.config, world.queries, world.set.qrels, world.rewrites, index, student)
    assert mined.fingerprint != first.fingerprint

    def rows(artifact):
        return [row for part in artifact.manifest().parts for row in pq.read_table(artifact.fetch(part)).to_pylist()]

    loaded = load_student(copied / "student")
    texts = [
        student_text(query.question, history_pairs(query), loaded.text, loaded.tokenizer.sep_token)
        for query in world.queries
    ]
    searcher = open_searcher(index)
    found = searcher.search(loaded.encoder().encode_queries(texts), 15).passages
    added = 0
    for before, after, numbers in zip(rows(first), rows(mined), found, strict=True):
        assert before["student_best"] is None
        assert after["student_best"] == numbers[numbers >= 0].tolist()
        assert after["passages"] == sorted({*before["passages"], *numbers[numbers >= 0].tolist()})
        added += len(after["passages"]) - len(before["passages"])
        for old, new in zip(before["scores"], after["scores"], strict=True):
            assert (old is None) == (new is None)
            if new is not None:
                exact = dict(zip(after["passages"], new, strict=True))
                assert len(exact) == len(after["passages"])
                assert [exact[number] for number in before["passages"]] == old
    counters = mined.manifest().metadata["counters"]
    assert counters["student_only"] == added > 0
    assert counters["gold_found.student"] == np.isin([3, 200], found[0]).sum()
    taken = {"student": world.rewrites["one"]}
    with pytest.raises(DataError, match="a teacher is named 'student'"):
        mine_candidates(world.config, world.queries, world.set.qrels, taken, index, student)


def test_an_earlier_student_encodes_the_rewrites_beside_the_document_encoder(copied, minilm):
    world = World(copied, minilm, {})
    index, student = world.index(), tiny_student(world, copied / "student", minilm)
    score = world.config.score.model_copy(update={"student_encodes_rewrites": True})
    config = world.config.model_copy(update={"score": score})

    def mined(config, student):
        return mine_candidates(config, world.queries, {}, world.rewrites, index, student)

    assert mined(config, None) == mined(world.config, None), "there is no student yet that could read anything"
    plain, both = mined(world.config, student), mined(config, student)
    assert both != plain
    assert both.manifest().metadata["teachers"] == ["one", "two", "one@student", "two@student"]

    loaded, searcher = load_student(copied / "student"), open_searcher(index)
    counters = both.manifest().metadata["counters"]
    assert [counters[f"rewrites.{name}@student"] for name in ("one", "two")] == [12, 10]
    tables = [[pq.read_table(each.fetch(part)) for part in each.manifest().parts] for each in (plain, both)]
    added = 0
    for before, after in zip(*(pa.concat_tables(each).to_pylist() for each in tables), strict=True):
        assert set(before["passages"]) <= set(after["passages"])
        added += len(after["passages"]) - len(before["passages"])
        passages = np.array(after["passages"])
        for own, read in ((0, 2), (1, 3)):
            text = world.texts[("one", "two")[own]].get(after["query_id"])
            if text is None:
                assert after["scores"][read] is None
                assert after["rewrite_terms"][read] is None
                continue
            terms, weights = after["rewrite_terms"][read], after["rewrite_weights"][read]
            vector = loaded.encoder().encode_queries([student_text(text, [], loaded.text, loaded.tokenizer.sep_token)])
            assert terms == vector.row(0)[0].tolist()
            scale = np.array(weights) / vector.row(0)[1]
            np.testing.assert_allclose(scale, scale[0], rtol=1e-5)
            stored = SparseBatch.from_rows([dict(zip(terms, weights, strict=True))], vector.vocabulary_size)
            np.testing.assert_allclose(after["scores"][read], searcher.scores(stored, [passages])[0], rtol=1e-4)
            np.testing.assert_allclose(np.std(after["scores"][read]), np.std(after["scores"][own]), rtol=1e-4)
            found = searcher.search(vector, score.top_k).passages[0]
            assert set(found[found >= 0].tolist()) <= set(after["passages"])
    assert added, "what the student finds by the rewrites is among the candidates"


def test_an_earlier_students_scores_are_scaled_to_spread_as_the_teachers_do():
    scores, flat = np.array([1.0, 2.0, 4.0], dtype=np.float32), np.full(3, 2.0, dtype=np.float32)
    assert scale_to_teachers(scores, scores * 3 + 5, []) == pytest.approx(3.0)
    assert scale_to_teachers(scores, flat, [flat, scores * 2, scores * 4]) == pytest.approx(3.0)
    assert scale_to_teachers(scores, flat, [flat]) is None
    assert scale_to_teachers(flat, scores, [scores]) is None
    assert scale_to_teachers(scores[:0], scores[:0], []) is None


def test_deleted_passages_are_no_candidates_but_stay_in_what_was_mined_before(copied, minilm):
    world = World(copied, minilm, {"c0::1": {"p3": 1, "p200": 2}})
    before, deleted = world.mine(), ["p3", *(f"p{number}" for number in range(100, 200))]
    made = PassageChange("delete", "d" * 64, lambda: [deleted])
    changed = commit_change(world.config.root, world.config.index.name, made)
    mined = mine_candidates(world.config, world.queries, world.set.qrels, world.rewrites, changed)

    def rows(artifact):
        return [row for part in artifact.manifest().parts for row in pq.read_table(artifact.fetch(part)).to_pylist()]

    gone = {3, *range(100, 200)}
    assert all(not gone & set(row["passages"]) for row in rows(mined))
    assert any(gone & set(row["passages"]) for row in rows(before))
    counters = mined.manifest().metadata["counters"]
    assert (counters["gold"], counters["unknown_gold"]) == (1, 1)
    assert world.mine() == before, "the chain keeps to the version of its corpus"


def test_half_done_mining_is_completed_to_the_same_bytes(copied, minilm):
    world = World(copied, minilm, {"c0::1": {"p3": 1}})
    mined = world.mine()
    before = mined.manifest()
    uncommit(mined, "00001")
    mined.store.delete(before.parts[1].key)
    assert world.mine().manifest().parts == before.parts
    assert candidates_artifact(world.config, world.queries, world.set.qrels, world.rewrites, world.index()) == mined


def test_queries_that_no_teacher_has_are_left_out_and_counted(copied, minilm):
    world = World(copied, minilm, {})
    mined = mine_candidates(world.config, world.queries, {}, {"two": world.rewrites["two"]}, world.index())
    rows = [row for part in mined.manifest().parts for row in pq.read_table(mined.fetch(part)).to_pylist()]
    assert [row["query_id"] for row in rows] == [query.query_id for query in world.queries[2:]]
    assert mined.manifest().rows == 10
    assert mined.manifest().metadata["counters"]["without_rewrite"] == 2


def test_more_unknown_judged_passages_than_the_corpus_lost_are_named_with_a_query(copied, minilm):
    world = World(copied, minilm, {"c1::2": {"p3": 1, "p998": 1, "p999": 1}})
    with pytest.raises(DataError, match=r"passage 'p998', judged relevant for query 'c1::2', is not in the corpus"):
        world.mine()


def test_as_many_unknown_judged_passages_as_the_corpus_lost_are_counted(copied, minilm):
    world = World(copied, minilm, {"c1::2": {"p3": 1, "p999": 1}})
    counters = world.mine().manifest().metadata["counters"]
    assert (counters["gold"], counters["unknown_gold"]) == (1, 1)


def test_the_stages_leave_the_same_bytes_on_s3(copied, s3_root, minilm):
    qrels = {"c1::2": {"p3": 1}}
    remote = World(copied, minilm, qrels, root=s3_root)
    mined = remote.mine()
    local = World(copied, minilm, qrels)
    assert [each.sha256 for each in remote.index().segments] == [each.sha256 for each in local.index().segments]
    expected = local.mine()
    assert expected.fingerprint == mined.fingerprint
    assert [part.sha256 for part in mined.manifest().parts] == [part.sha256 for part in expected.manifest().parts]
