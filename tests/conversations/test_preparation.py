"""Whatever a reader reads, preparing it and reading that back gives the same conversations, judgements and passages."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from formats import FORMATS, topiocqa

from raydistill.cli import main
from raydistill.config import ConversationSource, CorpusConfig, DatasetConfig, PrepareConfig, TurnColumns
from raydistill.conversations.prepared import corpus_files, prepared_artifact, quarantined_rows
from raydistill.conversations.readers import read_conversations
from raydistill.conversations.records import ConversationSet
from raydistill.errors import ConfigError, DataError
from raydistill.preparation import Prepared, prepare, published

QUERIES = {
    "beir": '{"_id": "301", "text": "organized crime"}\n{"_id": "302", "text": "b"}\n',
    "tsv": "301\torganized crime\n302\tb\n",
    "trec": "<top>\n<num> Number: 301\n<title> organized crime\n</top>\n",
}


def source(path: Path, reader: Any, **fields: Any) -> ConversationSource:
    return ConversationSource(conversations=str(path), reader=reader, **fields)


def read(uri: str, reader: Any = "prepared", **fields: Any) -> ConversationSet:
    return read_conversations(ConversationSource(conversations=uri, reader=reader, **fields), "mtrag", 0)


def prepared(root: str, sources: dict[str, ConversationSource], **fields: Any) -> dict[str, Prepared]:
    settings = PrepareConfig(dataset="set", to=root, conversations=sources, conversations_per_part=2, **fields)
    return {each.part: each for each in prepare(settings)}


def same(first: ConversationSet, second: ConversationSet) -> bool:
    fields = ("conversations", "qrels", "gold_texts")
    return all(getattr(first, field) == getattr(second, field) for field in fields)


def written_sources(folder: Path) -> dict[str, ConversationSource]:
    """Write a file for every reader and return its sources by part name."""
    sources = {}
    for name, form in FORMATS.items():
        path = folder / f"{name.replace(' ', '-')}.json"
        path.write_text(form.text(form.valid()))
        sources[path.stem] = source(path, form.reader)
    for reader, content in QUERIES.items():
        (folder / reader).write_text(content)
        (folder / f"{reader}.qrels").write_text("301 0 p1 2\n301 0 p2 -1\n")
        sources[reader] = source(folder / reader, reader, qrels=str(folder / f"{reader}.qrels"))
    (folder / "hub").mkdir()
    (folder / "hub" / "train.jsonl").write_text('{"q": "q1?", "gold": "p1"}\n{"q": "q2?", "gold": null}\n')
    settings = DatasetConfig(columns=TurnColumns(question="q", gold="gold"))
    return {**sources, "hub": source(folder / "hub", "huggingface", dataset=settings)}


def test_what_every_reader_reads_comes_back_equal(tmp_path: Path) -> None:
    sources = written_sources(tmp_path)
    parts = prepared(str(tmp_path / "root"), sources)
    assert parts.keys() == sources.keys()
    for name, own in sources.items():
        original, back = read_conversations(own, "mtrag", 0), read(parts[name].uri)
        assert same(original, back), name
        assert parts[name].counts["queries"] == len(list(original.queries()))
    assert len(pq.read_table(next((tmp_path / "root").rglob("set-ikat-*/00002-*.parquet")))) > 0


def test_splits_personas_and_prefixes_are_chosen_when_prepared_parts_are_read(tmp_path: Path) -> None:
    sources = written_sources(tmp_path)
    parts = prepared(str(tmp_path / "root"), sources)
    for name, fields in {
        "qrecc-scai": {"split": "quac"},
        "mtrag-tasks": {"split": "mt-rag-clapnq"},
        "ikat": {"persona": True},
        "cast": {"name": "cast", "prefix_ids": True},
    }.items():
        own = sources[name].model_copy(update=fields)
        assert same(read_conversations(own, "mtrag", 0), read(parts[name].uri, **fields)), name


def test_what_was_left_out_is_counted_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps([topiocqa(1, 1), {"conv_id": 2}, topiocqa(3, 1)]))
    with pytest.raises(DataError, match="record 2"):
        prepared(str(tmp_path / "root"), {"dev": source(path, "topiocqa")})
    part = prepared(str(tmp_path / "root"), {"dev": source(path, "topiocqa")}, max_bad_rows=1)["dev"]
    assert part.counts == {"conversations": 2, "queries": 2, "judged": 2, "quarantined": 1}
    assert quarantined_rows(prepared_artifact(part.uri, "conversations")) == [
        (f"{path}: record 2", "turn_id must be an integer from 1, not None")
    ]


def test_what_was_prepared_is_not_good_enough_for_a_lower_limit_or_another_release(tmp_path: Path) -> None:
    path, root = tmp_path / "dev.json", str(tmp_path / "root")
    path.write_text(json.dumps([topiocqa(1, 1), {"conv_id": 2}]))
    prepared(root, {"dev": source(path, "topiocqa")}, max_bad_rows=1)
    with pytest.raises(DataError, match=r"record 2: turn_id must be an integer from 1, not None.*max_bad_rows \(now 0\)"):
        prepared(root, {"dev": source(path, "topiocqa")})
    with pytest.raises(DataError, match="holds 1 turns in 1 conversations, 1 judged, but topiocqa-dev has 2,514"):
        prepared(root, {"dev": source(path, "topiocqa", release="topiocqa-dev")}, max_bad_rows=1)


def test_a_job_that_was_stopped_goes_on_with_the_parts_that_are_missing(tmp_path: Path) -> None:
    sources = {"mtrag": written_sources(tmp_path)["mtrag"]}
    part = prepared(str(tmp_path / "root"), sources)["mtrag"]
    artifact = prepared_artifact(part.uri, "conversations")
    before, kept = artifact.manifest(), f"{artifact.prefix}/_receipts/00000.json"
    untouched = artifact.store.info(kept)
    artifact.store.delete(f"{artifact.prefix}/_manifest.json")
    artifact.store.delete(f"{artifact.prefix}/_receipts/00001.json")
    assert prepared(str(tmp_path / "root"), sources)["mtrag"] == part
    assert artifact.manifest().parts == before.parts
    assert artifact.store.info(kept) == untouched


def test_a_file_that_names_something_else_is_refused(tmp_path: Path) -> None:
    part = prepared(str(tmp_path / "root"), {"cast": written_sources(tmp_path)["cast"]})["cast"]
    with pytest.raises(DataError, match="names prepared conversations, not corpus"):
        corpus_files([part.uri], "prepared")
    with pytest.raises(DataError, match=r"is no prepared data set; name ROOT/datasets/DATASET/PART\.json"):
        read(str(tmp_path / "cast.json"))


def test_a_published_data_set_is_found_by_its_usual_file_names(tmp_path: Path) -> None:
    for name in ("full_wiki_segments.tsv.gz", "topiocqa_train.json", "topiocqa_dev.json"):
        (tmp_path / name).touch()
    tree = published("topiocqa", str(tmp_path), "s3://bucket/prepared")
    assert tree["conversations"] == {
        part: {"reader": "topiocqa", "conversations": f"{tmp_path}/topiocqa_{part}.json"} for part in ("train", "dev")
    }
    assert tree["corpus"] == {"corpus": [f"{tmp_path}/full_wiki_segments.tsv.gz"], "corpus_format": "tsv", "max_bad_rows": 0}
    (tmp_path / "old_train.json").touch()
    with pytest.raises(ConfigError, match=r"several files may be topiocqa train \(.*old_train\.json, "):
        published("topiocqa", str(tmp_path), "s3://bucket/prepared")
    with pytest.raises(ConfigError, match=r"holds no file of beir; looked for queries\.jsonl"):
        published("beir", str(tmp_path), "s3://bucket/prepared")
    with pytest.raises(ConfigError, match="there is no layout of a data set 'trivia'; those are topiocqa"):
        published("trivia", str(tmp_path), "s3://bucket/prepared")


def test_a_file_that_all_parts_share_is_split_by_its_judgements(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps({"_id": each, "text": each}) + "\n" for each in "abc"))
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\na\tp1\t1\n")
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nb\tp1\t1\nc\tp1\t0\n")
    parts = prepare(PrepareConfig.model_validate(published("beir", str(tmp_path), str(tmp_path / "root"))))
    assert [(each.part, each.counts["queries"], each.counts["judged"]) for each in parts] == [("dev", 1, 1), ("test", 2, 2)]


def test_a_data_set_without_a_layout_is_described_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"ask": "q1?"}\n{"ask": ""}\n')
    (tmp_path / "prepare.yaml").write_text(
        "dataset: own\nto: here\nconversations:\n  train:\n    reader: huggingface\n    conversations: set\n"
        "    dataset: {columns: {question: ask}}\n"
    )
    command = ["prepare", "--config", str(tmp_path / "prepare.yaml")]
    assert main(command) == 1
    assert "row 2: field 'ask' is empty" in capsys.readouterr().err.replace("\n", "")
    assert main([*command, "--max-bad-rows", "1", "--to", str(tmp_path / "there")]) == 0
    assert "1 conversations, 1 queries, 0 judged, 1 quarantined" in capsys.readouterr().out
    assert [each.question for each in read(f"{tmp_path}/there/datasets/own/train.json").queries()] == ["q1?"]
    for arguments, sentence in (
        ([*command, "--from", "x"], "--from is where the files of --dataset are"),
        (["prepare", "--dataset", "beir", "--to", "x"], "--dataset needs --from"),
        ([*command, "conversations.train.name=a"], "name, split and persona are for who reads the prepared part"),
    ):
        assert main(arguments) == 1
        assert sentence in capsys.readouterr().err


REAL = {
    "cast-2019": ("trec/cast2019", 50, 479, 173),
    "cast-2020": ("trec/cast2020", 25, 216, 208),
    "cast-2021": ("trec/cast2021", 26, 239, 158),
    "cast-2022": ("trec/cast2022", 18, 205, 0),
    "ikat-2023": ("trec/ikat2023", 25, 332, 0),
    "ikat-2024": ("trec/ikat2024", 17, 218, 0),
    "ikat-2025": ("trec/ikat2025", 17, 188, 0),
    "mtrag": ("mtrag/clapnq", 29, 224, 208),
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL)
def test_real_files_are_found_counted_and_come_back_equal(shared_data: Path, tmp_path: Path, name: str) -> None:
    folder, conversations, queries, judged = REAL[name]
    tree = {**published(name, str(shared_data / folder), str(tmp_path)), "corpus": None}
    config = PrepareConfig.model_validate(tree)
    (part,) = prepare(config)
    assert part.counts == {"conversations": conversations, "queries": queries, "judged": judged, "quarantined": 0}
    assert same(read_conversations(config.conversations[part.part], "mtrag", 0), read(part.uri))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_the_command_prepares_a_data_set_that_reads_back_equal(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    root = f"file://{tmp_path}/root" if kind == "folder" else str(request.getfixturevalue("s3_root"))
    (tmp_path / "dev.json").write_text(json.dumps([topiocqa(1, 1), topiocqa(1, 2)]))
    lines = ["id\ttext\ttitle", *(f"{number}\tgold of {number - 100}\tT" for number in range(101, 120)), "broken"]
    (tmp_path / "full_wiki_segments.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    command = ["prepare", "--dataset", "topiocqa", "--from", str(tmp_path), "--to", root, "passages_per_part=10"]
    assert main(command) == 1
    assert "full_wiki_segments.tsv.gz:21: has 1 tab-separated columns" in capsys.readouterr().err.replace("\n", "")
    assert main([*command, "--max-bad-rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "1 conversations, 2 queries, 2 judged, 0 quarantined" in shown
    assert "19 passages, 1 quarantined" in shown
    original = read(str(tmp_path / "dev.json"), "topiocqa")
    assert same(original, read(f"{root}/datasets/topiocqa/dev.json"))
    files = corpus_files([f"{root}/datasets/topiocqa/corpus.json"], "prepared")
    assert len(files) == 2
    again = PrepareConfig(
        dataset="again", to=f"{tmp_path}/again", corpus=CorpusConfig(corpus=tuple(files), corpus_format="parquet")
    )
    assert prepare(again)[0].counts == {"passages": 19, "quarantined": 0}


@pytest.mark.slow
def test_two_million_lines_take_constant_memory_and_a_killed_job_goes_on(tmp_path: Path) -> None:
    """The peak of the worker that converts 2 million lines is within 200 MiB of that for 200,000."""
    peaks = {}
    for lines in (200_000, 2_000_000):
        folder = tmp_path / str(lines)
        folder.mkdir()
        with (folder / "collection.tsv").open("w") as file:
            file.writelines(f"{number}\tpassage {number} has a few words of its own\n" for number in range(lines))
        script = [sys.executable, "-c", _MEASURED, str(folder), str(folder / "root")]
        if lines == 2_000_000:
            job = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
            deadline = time.monotonic() + 300
            while time.monotonic() < deadline and not list((folder / "root").rglob("_receipts/*.json")):
                time.sleep(0.2)
            job.kill()
            job.wait()
            receipts = {path: path.stat().st_mtime_ns for path in (folder / "root").rglob("_receipts/*.json")}
            assert receipts
        done = subprocess.run(script, capture_output=True, text=True, check=True)
        peaks[lines] = int(done.stdout.split()[-1])
        assert f"{lines} passages" in done.stdout
    assert all(path.stat().st_mtime_ns == changed for path, changed in receipts.items())
    assert peaks[2_000_000] - peaks[200_000] < 200 << 10


_MEASURED = """
import resource, sys
from pathlib import Path
from raydistill.config import CorpusFormat, PassageColumns
from raydistill.index.corpus import _FileConverter
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint

folder, root = sys.argv[1:]
artifact = Artifact(root, "corpus", "passages", fingerprint("corpus", 1, {}, {}))
writer = ArtifactWriter(artifact)
convert = _FileConverter(writer, "msmarco", PassageColumns(), None, 100_000, 0, False)
end = convert({"file": 0, "uri": f"{folder}/collection.tsv", "finished": list(writer.finished())})
print(int(end["counters"]["passages"]), "passages, peak KiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
