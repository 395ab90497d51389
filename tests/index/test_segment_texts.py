"""Texts beside segments: found by place, checked by id, from whatever corpus has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raydistill.conversations.records import Passage
from raydistill.index.passage_files import PassageFileWriter
from raydistill.index.segment_texts import SegmentTexts
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint


def corpus(folder: Path, name: str, parts: dict[str, list[Passage]]) -> Artifact:
    artifact = Artifact(f"file://{folder}/root", "corpus", "passages", fingerprint("corpus", 1, {"name": name}, {}))
    for part, passages in parts.items():
        writer = PassageFileWriter(folder / f"{name}-{part}.parquet")
        for passage in passages:
            writer.add(passage)
        writer.close()
        ArtifactWriter(artifact).put_part(part, writer.path, ".parquet", rows=len(passages))
    ArtifactWriter(artifact).commit(list(parts), {})
    return artifact


def made(tag: str, count: int) -> list[Passage]:
    return [Passage(f"{tag}{number}", f"text of {tag}{number}", title="T") for number in range(count)]


def test_texts_come_in_the_order_asked_with_their_titles(tmp_path):
    texts = SegmentTexts([corpus(tmp_path, "c", {"00": made("a", 5000), "01": made("b", 3)})], ["00"])
    texts.open()
    rows = np.array([4999, 0, 7, 0])
    found = texts.texts("00", rows, [f"a{row}" for row in rows])
    assert found == [f"T\ntext of a{row}" for row in rows]
    assert texts.texts("00", np.zeros(0, dtype=np.int64), []) == []


def test_parts_of_one_name_in_two_corpora_are_told_apart_by_id(tmp_path):
    old, new = corpus(tmp_path, "old", {"00": made("a", 3)}), corpus(tmp_path, "new", {"00": made("b", 5)})
    texts = SegmentTexts([new, old], ["00"])
    assert texts.texts("00", np.array([1, 2]), ["a1", "a2"]) == ["T\ntext of a1", "T\ntext of a2"]
    assert texts.texts("00", np.array([4, 1]), ["b4", "b1"]) == ["T\ntext of b4", "T\ntext of b1"]


def test_the_newest_corpus_counts_and_what_is_elsewhere_has_no_text(tmp_path):
    old = corpus(tmp_path, "old", {"00": made("a", 3)})
    new = corpus(tmp_path, "new", {"00": [Passage("a0", "revised")]})
    texts = SegmentTexts([new, old], ["00", "merged"])
    assert texts.texts("00", np.array([0, 1]), ["a0", "a1"]) == ["revised", "T\ntext of a1"]
    assert texts.texts("00", np.array([0, 9]), ["a1", "a2"]) == [None, None]
    assert texts.texts("merged", np.array([0]), ["a0"]) == [None]


def test_passages_of_a_merged_segment_are_found_where_they_came_from(tmp_path):
    parts = {"00": made("a", 3000), "01": made("b", 3), "02": made("c", 2)}
    old, new = corpus(tmp_path, "old", parts), corpus(tmp_path, "new", {"01": [Passage("b1", "revised")]})
    newest = corpus(tmp_path, "newest", {"05": [Passage("a0", "rewritten")]})
    texts = SegmentTexts([newest, new, old], ["merged", "02"], {"merged": ["00", "01", "05"], "elsewhere": ["02"]})
    for _ in range(2):
        found = texts.texts("merged", np.arange(5), ["a2999", "b1", "a0", "c1", "b2"])
        assert found == ["T\ntext of a2999", "revised", "rewritten", None, "T\ntext of b2"]
        texts.open()
    assert texts.texts("02", np.array([1]), ["c1"]) == ["T\ntext of c1"]


def test_ids_of_one_key_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("raydistill.index.segment_texts._key", lambda passage_id: len(passage_id))
    texts = SegmentTexts([corpus(tmp_path, "c", {"00": made("a", 30)})], ["m"], {"m": ["00"]})
    assert texts.texts("m", np.arange(3), ["a7", "a29", "x9"]) == ["T\ntext of a7", "T\ntext of a29", None]
