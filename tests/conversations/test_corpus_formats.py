"""Collections in every form give the same passages in the corpus stage; what cannot be used is counted with its place."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raydistill.config import CorpusConfig, CorpusFormat, DatasetPart, PassageColumns, PoolConfig
from raydistill.conversations.passages import BadRow, read_passages
from raydistill.conversations.records import Passage
from raydistill.errors import DataError
from raydistill.index.corpus import passage_parts, prepare_corpus, quarantined_rows
from raydistill.index.gold_texts import check_gold_texts
from raydistill.index.passage_files import passage_batches
from raydistill.storage.artifacts import Artifact
from raydistill.storage.files import open_input

WORKERS = PoolConfig(actors=1, cpus=1)
PASSAGES = [Passage(f"p{number}", f'text "{number}" \u00fc', f"Title {number}" if number % 2 else "") for number in range(7)]


def tsv_field(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if '"' in text else text


def jsonl(passages: list[Passage], *names: str) -> bytes:
    return "".join(
        json.dumps(dict(zip(names, (one.passage_id, one.text, one.title), strict=False))) + "\n" for one in passages
    ).encode()


def tsv(passages: list[Passage]) -> bytes:
    lines = [f"{one.title}\t{one.passage_id}\tskipped\t{tsv_field(one.text)}" for one in passages]
    return "\n".join(["title\tid\turl\ttext", *lines]).encode()


def ms_marco(passages: list[Passage]) -> bytes:
    return "".join(f"{one.passage_id}\t{one.text}\t{one.title}\n" for one in passages).encode()


def parquet(passages: list[Passage], names: tuple[str, ...] = ("docid", "contents", "title"), rows: int = 3) -> bytes:
    columns = {name: [getattr(one, field) for one in passages] for name, field in zip(names, FIELDS, strict=True)}
    buffer = io.BytesIO()
    pq.write_table(pa.table({**columns, "other": [[1]] * len(passages)}), buffer, row_group_size=rows)
    return buffer.getvalue()


FIELDS = ("passage_id", "text", "title")


def zstandard(content: bytes) -> bytes:
    """Return the content as two frames, as tools that write in parallel leave it."""
    half = len(content) // 2
    return b"".join(bytes(pa.Codec("zstd").compress(piece)) for piece in (content[:half], content[half:]))


def gzipped(content: bytes) -> bytes:
    half = len(content) // 2
    return gzip.compress(content[:half]) + gzip.compress(content[half:])


WRITTEN: dict[str, tuple[CorpusFormat, bytes]] = {
    "beir": ("jsonl", jsonl(PASSAGES, "_id", "text", "title")),
    "contents": ("jsonl", jsonl(PASSAGES, "id", "contents", "title")),
    "tsv": ("tsv", tsv(PASSAGES)),
    "msmarco": ("msmarco", ms_marco(PASSAGES)),
    "parquet": ("parquet", parquet(PASSAGES)),
}
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzipped, ".bz2": bz2.compress, ".zst": zstandard}


def read(content: bytes, corpus_format: CorpusFormat, **columns: str) -> list[Passage | BadRow]:
    return list(read_passages(io.BytesIO(content), "c", corpus_format, PassageColumns(**columns)))


def config(corpus: list[str], corpus_format: CorpusFormat, max_bad_rows: int = 0, **columns: str) -> CorpusConfig:
    settings: dict[str, Any] = {"corpus_format": corpus_format, "corpus_columns": PassageColumns(**columns)}
    return CorpusConfig(corpus=tuple(corpus), max_bad_rows=max_bad_rows, **settings)


def stored(corpus: Artifact) -> list[Passage]:
    return [
        passage
        for part in passage_parts(corpus.manifest())
        for batch in passage_batches(corpus.fetch(part))
        for passage in batch
    ]


@pytest.mark.parametrize("name", WRITTEN)
def test_every_format_gives_the_same_passages(name: str) -> None:
    corpus_format, content = WRITTEN[name]
    assert read(content, corpus_format) == PASSAGES


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("name", WRITTEN)
def test_every_format_can_be_compressed(tmp_path: Path, name: str, suffix: str) -> None:
    corpus_format, content = WRITTEN[name]
    path = tmp_path / f"file.x{suffix}"
    path.write_bytes(COMPRESSED[suffix](content))
    with open_input(str(path)) as stream:
        assert list(read_passages(stream, str(path), corpus_format)) == PASSAGES


@pytest.mark.usefixtures("ray_cluster")
def test_many_compressed_files_go_through_the_corpus_stage(tmp_path: Path) -> None:
    for number, (suffix, compress) in enumerate(COMPRESSED.items()):
        own = [Passage(f"{number}-{one.passage_id}", one.text, one.title) for one in PASSAGES]
        (tmp_path / f"part-{number}.tsv{suffix}").write_bytes(compress(ms_marco(own)))
    corpus = prepare_corpus(config([f"{tmp_path}/part-*"], "msmarco"), 3, WORKERS, str(tmp_path / "root"))
    assert [passage.passage_id for passage in stored(corpus)] == [
        f"{number}-{one.passage_id}" for number in range(len(COMPRESSED)) for one in PASSAGES
    ]
    assert [(one.text, one.title) for one in stored(corpus)] == [(one.text, one.title) for one in PASSAGES] * 4
    assert [part.rows for part in passage_parts(corpus.manifest())] == [3, 3, 1] * 4


def test_named_columns_are_read_and_absent_ones_refused() -> None:
    names = ("key", "words", "head")
    content = {"jsonl": jsonl(PASSAGES, *names), "parquet": parquet(PASSAGES, names)}
    for corpus_format in ("jsonl", "parquet"):
        assert read(content[corpus_format], corpus_format, id="key", text="words", title="head") == PASSAGES
    with pytest.raises(
        DataError, match=r"c: has the columns key, words, head, other, none of which is the id of its passages"
    ):
        read(content["parquet"], "parquet")
    with pytest.raises(DataError, match="none of which is the column nr of its passages; name them in"):
        read(content["parquet"], "parquet", id="nr", text="words")
    assert read(content["jsonl"], "jsonl", id="key", text="nr")[0] == BadRow("c:1", "has no field 'nr'")


def test_parquet_rows_that_are_no_passages_are_bad_rows_with_their_number() -> None:
    table = pa.table({"id": [1, 2, 3, None], "text": ["one", "", "three", "four"]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    assert read(buffer.getvalue(), "parquet") == [
        Passage("1", "one"),
        BadRow("c: row 2", "field 'text' is empty"),
        Passage("3", "three"),
        BadRow("c: row 4", "field 'id' is empty"),
    ]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all", parquet(PASSAGES)[:-9]])
def test_a_damaged_parquet_file_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"c: cannot be read as Parquet .*; it is damaged or another format"):
        read(content, "parquet")


def check_spoilt(name: str, seed: int) -> None:
    """Change some bytes of a file; every row is then a usable passage or a bad row, or the file is refused."""
    corpus_format, content = WRITTEN[name]
    draw, spoilt = random.Random(seed), bytearray(content)
    for _ in range(draw.choice([1, 1, 3, 20])):
        spoilt[draw.randrange(len(spoilt))] = draw.randrange(256)
    try:
        rows = read(bytes(spoilt), corpus_format)
    except DataError as error:
        refusal = str(error)
    else:
        assert all(
            isinstance(row, BadRow) or (row.passage_id.strip() and row.text.strip() and row.text.encode()) for row in rows
        )
        if corpus_format in ("jsonl", "msmarco"):
            lines = [line for line in spoilt.split(b"\n") if line.decode(errors="replace").strip()]
            assert len(rows) == len(lines)
        return
    assert refusal.startswith("c:")


@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_a_spoilt_file_is_refused_or_loses_no_row(name: str, seed: int) -> None:
    check_spoilt(name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**32))
def test_a_thousand_spoilt_files_are_refused_or_lose_no_row(name: str, seed: int) -> None:
    check_spoilt(name, seed)


def test_ms_marco_lines_all_have_as_many_columns_as_the_first() -> None:
    assert read(b"0\tsome text\n1\tsplit\ttext\n2\tmore\n", "msmarco") == [
        Passage("0", "some text"),
        BadRow("c:2", "has 3 tab-separated columns instead of 2"),
        Passage("2", "more"),
    ]
    assert read(b"D1\thttp://x\tTitle\tbody words\n", "msmarco") == [Passage("D1", "body words", "Title")]
    with pytest.raises(DataError, match=r"c:1: has 1 tab-separated columns"):
        read(b"0 some text\n", "msmarco")
    with pytest.raises(DataError, match=r"c:1: begins with a header; set data.corpus_format: tsv"):
        read(b"id\ttext\n", "msmarco")


@pytest.mark.usefixtures("ray_cluster")
def test_bad_and_repeated_parquet_rows_are_quarantined_with_place_and_count(tmp_path: Path) -> None:
    rows = [PASSAGES[0], Passage("x", " "), PASSAGES[1], PASSAGES[0]]
    path = tmp_path / "c.parquet"
    path.write_bytes(parquet(rows))
    with pytest.raises(DataError, match=r"c\.parquet: row 2: field 'contents' is empty"):
        prepare_corpus(config([str(path)], "parquet"), 10, WORKERS, str(tmp_path / "root"))
    corpus = prepare_corpus(config([str(path)], "parquet", max_bad_rows=2), 10, WORKERS, str(tmp_path / "root"))
    assert quarantined_rows(corpus) == [
        (f"{path}: row 2", "field 'contents' is empty"),
        (f"{path}: row 4", "repeats the id 'p0' of an earlier line"),
    ]
    assert corpus.manifest().metadata["quarantined"] == 2


@pytest.mark.usefixtures("ray_cluster")
def test_a_hugging_face_data_set_goes_through_the_corpus_stage(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "corpus-00000-of-00002.parquet").write_bytes(parquet([*PASSAGES[:4], Passage("x", " ")]))
    (folder / "corpus-00001-of-00002.parquet").write_bytes(parquet(PASSAGES[4:]))
    settings = CorpusConfig(
        corpus=(str(folder),), corpus_format="huggingface", corpus_dataset=DatasetPart(split="train"), max_bad_rows=1
    )
    corpus = prepare_corpus(settings, 3, WORKERS, str(tmp_path / "root"))
    assert stored(corpus) == PASSAGES
    assert quarantined_rows(corpus) == [(f"{folder}: row 5", "field 'contents' is empty")]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"corpus_format": "huggingface"}, "go together"),
        ({"corpus_dataset": {}}, "go together"),
        ({"corpus": ("hf://o/n",), "corpus_format": "huggingface", "corpus_dataset": {}}, r"needs corpus_dataset\.revision"),
    ],
)
def test_a_corpus_of_the_hub_is_configured_whole(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        CorpusConfig(**{"corpus": ("/folder",), **fields})


@pytest.mark.usefixtures("ray_cluster")
def test_gold_passages_whose_ids_are_shifted_are_told_by_their_texts(tmp_path: Path) -> None:
    passages = [Passage(str(number), f"passage number {number} of them", "T") for number in range(1, 40)]
    path = tmp_path / "c.jsonl"
    path.write_bytes(jsonl(passages, "_id", "text", "title"))
    corpus = prepare_corpus(config([str(path)], "jsonl"), 10, WORKERS, str(tmp_path / "root"))
    right = {one.passage_id: f"T {one.text.upper()}" for one in passages[5:25]}
    check_gold_texts(corpus, {**right, "39": "reworded", "absent": "x"}, "data.train", WORKERS)
    shifted = {str(int(passage_id) - 1): text for passage_id, text in right.items()}
    with pytest.raises(DataError, match=r"data.test: 20 of 20 gold passages .* so ids are shifted by -1 on one side"):
        check_gold_texts(corpus, shifted, "data.test", WORKERS)
    foreign = dict.fromkeys(right, "words of another release")
    with pytest.raises(DataError, match=r"data.test: 20 of 20 .*; check that data.corpus and the conversations are of one"):
        check_gold_texts(corpus, foreign, "data.test", WORKERS)
