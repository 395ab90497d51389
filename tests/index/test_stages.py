"""Corpus, index and mining on Ray: complete, exact, resumable, and strict about bad input."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raydistill.config import (
    ConversationSource,
    DataConfig,
    DistillConfig,
    IndexConfig,
    PoolConfig,
    RecordedTeacherConfig,
    ScoreConfig,
    SpladeDocumentsConfig,
    StudentConfig,
)
from raydistill.conversations.records import Conversation, ConversationalQuery, ConversationSet, Turn
from raydistill.conversations.text import history_pairs, student_text
from raydistill.encoders.checkpoint import load_student
from raydistill.encoders.documents import load_document_encoder
from raydistill.encoders.lexical import LexicalStatistics
from raydistill.errors import DataError
from raydistill.index.build import build_index, planned_index
from raydistill.index.changes import PassageChange
from raydistill.index.commit import commit_change
from raydistill.index.corpus import check_judged_passages, passage_parts, prepare_corpus, quarantined_rows
from raydistill.index.mine import candidates_artifact, mine_candidates
from raydistill.index.passage_files import passage_batches
from raydistill.index.publish import IndexVersion, current_version
from raydistill.index.search import open_searcher
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.storage.folders import put_folder
from raydistill.storage.store import open_store
from raydistill.teachers.pool import teach

WORDS = ["river", "mountain", "paris", "france", "capital", "music", "piano", "tower", "bridge", "history", "war", "king"]
WORDS += ["queen", "ship", "sea", "peace"]
WORKERS = PoolConfig(actors=1, cpus=1)
pytestmark = pytest.mark.usefixtures("ray_cluster")


def passages(count: int, prefix: str = "p") -> list[dict[str, str]]:
    rng = np.random.default_rng(7)
    return [
        {"_id": f"{prefix}{number}", "title": f"Page {number}", "text": " ".join(rng.choice(WORDS, size=12))}
        for number in range(count)
    ]


def write_jsonl(path: Path, records: list[dict[str, str]]) -> str:
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def data_config(corpus: list[str], max_bad_rows: int = 0) -> DataConfig:
    source = ConversationSource(conversations="/unused")
    return DataConfig(corpus=tuple(corpus), train=source, test=source, max_bad_rows=max_bad_rows)


def read_corpus(corpus: Artifact) -> list[dict[str, str]]:
    rows = []
    for part in passage_parts(corpus.manifest()):
        for batch in passage_batches(corpus.fetch(part)):
            assert len(batch) <= part.rows
            rows += [{"_id": each.passage_id, "title": each.title, "text": each.text} for each in batch]
    return rows


def uncommit(artifact: Artifact, *parts: str) -> None:
    """Leave the artifact as a crash would: no manifest, some receipts missing."""
    artifact.store.delete(f"{artifact.prefix}/_manifest.json")
    for part in parts:
        artifact.store.delete(f"{artifact.prefix}/_receipts/{part}.json")


# Corpus.


def test_files_become_parts_of_exactly_the_asked_size_in_order(tmp_path):
    first, second = passages(25, "a"), passages(10, "b")
    files = [write_jsonl(tmp_path / "1.jsonl", first), write_jsonl(tmp_path / "2.jsonl.gz", second)]
    corpus = prepare_corpus(data_config(files), 10, WORKERS, str(tmp_path / "root"))
    manifest = corpus.manifest()
    parts = passage_parts(manifest)
    assert [(part.name, part.rows) for part in parts] == [
        ("00000-00000", 10),
        ("00000-00001", 10),
        ("00000-00002", 5),
        ("00001-00000", 10),
    ]
    assert manifest.rows == 35
    assert manifest.metadata == {
        "files": ["1.jsonl", "2.jsonl.gz"],
        "passages": 35,
        "quarantined": 0,
        "ids_checked_across_files": True,
    }
    assert read_corpus(corpus) == first + second
    assert prepare_corpus(data_config(files), 10, WORKERS, str(tmp_path / "root")) == corpus


def test_a_half_done_corpus_is_completed_to_the_same_bytes(tmp_path):
    files = [write_jsonl(tmp_path / "1.jsonl", passages(25, "a")), write_jsonl(tmp_path / "2.jsonl", passages(15, "b"))]
    root = str(tmp_path / "root")
    corpus = prepare_corpus(data_config(files), 10, WORKERS, root)
    before = corpus.manifest()
    untouched = corpus.store.info(f"{corpus.prefix}/_receipts/00000-00000.json")
    uncommit(corpus, "00000-00001", "00000-quarantine")
    corpus.store.delete(corpus_key(before, "00000-00001"))
    assert prepare_corpus(data_config(files), 10, WORKERS, root).manifest().parts == before.parts
    assert corpus.store.info(f"{corpus.prefix}/_receipts/00000-00000.json") == untouched
    assert len(read_corpus(corpus)) == 40


def corpus_key(manifest, name: str) -> str:
    return next(part.key for part in manifest.parts if part.name == name)


def test_bad_rows_are_named_with_line_and_fix_or_quarantined_within_the_limit(tmp_path):
    good = passages(4)
    lines = [json.dumps(good[0]), "{broken", json.dumps({"_id": "x", "title": "", "text": " "}), json.dumps(good[1])]
    lines += ["", json.dumps(good[1]), json.dumps({"text": "no id"}), json.dumps(good[2]), json.dumps(good[3])]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(lines))
    root = str(tmp_path / "root")
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: is not valid JSON.*data\.max_bad_rows"):
        prepare_corpus(data_config([str(path)]), 2, WORKERS, root)
    with pytest.raises(DataError, match=r"corpus\.jsonl:7: has no field '_id'.*data\.max_bad_rows \(now 3\)"):
        prepare_corpus(data_config([str(path)], max_bad_rows=3), 2, WORKERS, root)
    corpus = prepare_corpus(data_config([str(path)], max_bad_rows=4), 2, WORKERS, root)
    assert read_corpus(corpus) == good
    rows = quarantined_rows(corpus)
    assert [place.rpartition(":")[2] for place, _ in rows] == ["2", "3", "6", "7"]
    assert rows[2][1] == "repeats the id 'p1' of an earlier line"
    assert corpus.manifest().metadata["quarantined"] == 4
    # Committed once, but the limit of a later run still counts.
    with pytest.raises(DataError, match=r"corpus\.jsonl:7"):
        prepare_corpus(data_config([str(path)], max_bad_rows=3), 2, WORKERS, root)


def test_bad_rows_count_over_all_files_together(tmp_path):
    files = []
    for name in "ab":
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(passages(1, name)[0]) + "\nnonsense\n")
        files.append(str(path))
    with pytest.raises(DataError, match=r"[ab]\.jsonl:2: .*malformed row number 2"):
        prepare_corpus(data_config(files, max_bad_rows=1), 5, WORKERS, str(tmp_path / "root"))


def test_an_id_in_two_files_is_an_error_that_names_both(tmp_path):
    files = [write_jsonl(tmp_path / "1.jsonl", passages(9)), write_jsonl(tmp_path / "2.jsonl", passages(20)[8:])]
    with pytest.raises(DataError, match=r"'p8' is in .*1\.jsonl and in .*2\.jsonl"):
        prepare_corpus(data_config(files), 4, WORKERS, str(tmp_path / "root"))


def test_an_empty_corpus_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no passage"):
        prepare_corpus(data_config([str(tmp_path / "empty.jsonl")]), 4, WORKERS, str(tmp_path / "root"))


def test_judged_passages_are_looked_for_before_anything_is_encoded(tmp_path):
    corpus = prepare_corpus(
        data_config([write_jsonl(tmp_path / "1.jsonl", passages(9))]), 4, WORKERS, str(tmp_path / "root")
    )
    check_judged_passages(corpus, {"q1": {"p0": 1, "p8": 0}}, "qrels.tsv", WORKERS)
    with pytest.raises(DataError, match=r"'p9'.*'q2'"):
        check_judged_passages(corpus, {"q1": {"p0": 1}, "q2": {"p9": 1}}, str(tmp_path / "1.jsonl"), WORKERS)


# Index.


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


def lexical_config(**changes) -> IndexConfig:
    return IndexConfig(**{"passages_per_segment": 100, "impacts": "f32", "workers": WORKERS, **changes})


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


def save_tiny_splade(folder: str, tokenizer_of: str) -> None:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# Mining.


class World:
    """A small corpus, its index, and two teachers that rewrite the same conversations."""

    def __init__(self, folder: Path, minilm: str, qrels: dict[str, dict[str, int]], root: str = "") -> None:
        self.folder = folder
        conversations = [
            Conversation(f"c{c}", tuple(Turn(f"c{c}::{t}", t, f"and the {WORDS[c + t]}?", f"A{t}.") for t in (1, 2, 3)))
            for c in range(4)
        ]
        self.set = ConversationSet(tuple(conversations), qrels, "0" * 64)
        self.queries: list[ConversationalQuery] = list(self.set.queries())
        self.texts = {
            "one": {query.query_id: f"tell me of {WORDS[n]} {WORDS[n + 1]}" for n, query in enumerate(self.queries)},
            "two": {query.query_id: f"what about the {WORDS[-n - 1]}" for n, query in enumerate(self.queries[2:])},
        }
        teachers = []
        for name, texts in self.texts.items():
            uri = write_jsonl(folder / f"{name}.jsonl", [{"_id": key, "text": text} for key, text in texts.items()])
            teachers.append(RecordedTeacherConfig(name=name, rewrites=uri))
        self.config = DistillConfig(
            run="test",
            root=root or str(folder / "root"),
            data=data_config([str(folder / "corpus.jsonl")], max_bad_rows=1),
            teachers=tuple(teachers),
            student=StudentConfig(model=minilm),
            index=lexical_config(),
            score=ScoreConfig(top_k=15, queries_per_part=5, workers=WORKERS),
        )
        self.rewrites = {each.name: teach(each, self.queries, "1" * 64, self.config.root) for each in teachers}

    def index(self) -> IndexVersion:
        corpus = prepare_corpus(self.config.data, 100, WORKERS, self.config.root)
        return build_index(self.config.index, self.config.student, corpus, self.config.root)

    def mine(self) -> Artifact:
        return mine_candidates(self.config, self.queries, self.set.qrels, self.rewrites, self.index())


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


def test_a_further_round_adds_what_the_student_finds_and_every_teacher_scores_it(copied, minilm):
    world = World(copied, minilm, {"c0::1": {"p3": 1, "p200": 2}})
    first, index = world.mine(), world.index()
    save_tiny_splade(str(copied / "student"), minilm)
    student = Artifact(world.config.root, "student", "tiny", fingerprint("student", 1, {}, {}))
    ArtifactWriter(student).commit(put_folder(ArtifactWriter(student), copied / "student"), {})
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
