"""The corpus on Ray: complete, resumable, and strict about bad input."""

from __future__ import annotations

import json

import pytest
from stage_world import WORKERS, data_config, passages, read_corpus, uncommit, write_jsonl

from raydistill.errors import DataError
from raydistill.index.corpus import check_judged_passages, passage_parts, prepare_corpus, quarantined_rows

pytestmark = pytest.mark.usefixtures("ray_cluster")


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
