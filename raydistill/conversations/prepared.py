"""Prepared data sets: conversations as Parquet artifacts, and the small files by which configurations name them.

    {root}/datasets/{dataset}/{part}.json           address of an artifact: a split's conversations, or the corpus
    {root}/artifacts/conversations/{dataset}-{part}-{fingerprint}/
        00000.parquet ...                           turns, whole conversations (TURNS)
        qrels.parquet, gold-texts.parquet           where there are any
        quarantine.json                             {"rows": [{"place", "reason"}, ...]}

What makes them is in `raydistill.preparation`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.config import CorpusConfig, CorpusFormat
from raydistill.conversations.hub import dataset_fingerprint
from raydistill.conversations.qrels import Qrels
from raydistill.conversations.records import Conversation, Turn
from raydistill.conversations.rows import Quarantine
from raydistill.conversations.sources import ConversationFile
from raydistill.errors import DataError
from raydistill.storage.artifacts import Artifact, ArtifactWriter, Manifest
from raydistill.storage.files import input_files, input_fingerprint, read_input
from raydistill.storage.hashing import canonical_json, sealed, sha256_hex, unsealed
from raydistill.storage.store import open_store

_FOLDER = "datasets"
CONVERSATIONS, CORPUS = "conversations", "corpus"


def _text(name: str) -> pa.Field:
    return pa.field(name, pa.string(), nullable=False)


TURNS = pa.schema(
    [
        pa.field("conversation", pa.int64(), nullable=False),
        _text("conversation_id"),
        _text("split"),
        pa.field("persona", pa.list_(pa.string()), nullable=False),
        pa.field("asked_before", pa.int32(), nullable=False),
        _text("query_id"),
        pa.field("depth", pa.int32(), nullable=False),
        _text("question"),
        _text("answer"),
        _text("rewrite"),
        _text("topic"),
    ]
)
QRELS = pa.schema([_text("query_id"), _text("passage_id"), pa.field("grade", pa.int64(), nullable=False)])
GOLD_TEXTS = pa.schema([_text("passage_id"), _text("text")])
_BLOCK_NAME = "{:05d}"


def put_conversations(
    writer: ArtifactWriter, file: ConversationFile, quarantined: Sequence[tuple[str, str]], per_part: int
) -> list[str]:
    """Put what a conversation file holds, parts that are there already apart, and return the names of all parts."""
    finished = writer.finished()
    names = []
    for number, start in enumerate(range(0, len(file.conversations), per_part)):
        names.append(_BLOCK_NAME.format(number))
        if names[-1] not in finished:
            block = file.conversations[start : start + per_part]
            rows = [row for place, one in enumerate(block, start) for row in _turn_rows(place, one, file)]
            _put_table(writer, names[-1], rows, TURNS, {"conversations": len(block), "turns": len(rows)})
    judgements = [
        {"query_id": query_id, "passage_id": passage_id, "grade": grade}
        for query_id, grades in file.qrels.items()
        for passage_id, grade in grades.items()
    ]
    texts = [{"passage_id": passage_id, "text": text} for passage_id, text in file.gold_texts.items()]
    for name, rows, schema in (("qrels", judgements, QRELS), ("gold-texts", texts, GOLD_TEXTS)):
        if rows:
            names.append(name)
            if name not in finished:
                _put_table(writer, name, rows, schema, {})
    listed = {"rows": [{"place": place, "reason": reason} for place, reason in quarantined]}
    writer.put_part("quarantine", json.dumps(listed, indent=1).encode(), ".json", 0, {"quarantined": len(quarantined)})
    return [*names, "quarantine"]


def _turn_rows(place: int, one: Conversation, file: ConversationFile) -> Iterator[dict[str, Any]]:
    whole = {
        "conversation": place,
        "conversation_id": one.conversation_id,
        "split": file.splits.get(one.conversation_id, ""),
        "persona": list(one.facts),
        "asked_before": one.asked_before,
    }
    for turn in one.turns:
        said = {"question": turn.question, "answer": turn.answer, "rewrite": turn.rewrite, "topic": turn.topic}
        yield {**whole, "query_id": turn.query_id, "depth": turn.depth, **said}


def _put_table(
    writer: ArtifactWriter, name: str, rows: list[dict[str, Any]], schema: pa.Schema, counters: dict[str, float]
) -> None:
    with tempfile.TemporaryDirectory(prefix="raydistill-prepare-") as folder:
        path = Path(folder) / "part.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
        writer.put_part(name, path, ".parquet", rows=len(rows), counters=counters)


def quarantined_rows(artifact: Artifact) -> list[tuple[str, str]]:
    """Return (place, reason) of every row that was left out of prepared conversations."""
    rows = json.loads(artifact.fetch(artifact.part("quarantine")).read_bytes())["rows"]
    return [(row["place"], row["reason"]) for row in rows]


def read_prepared(uri: str, quarantine: Quarantine) -> ConversationFile:
    """Read the conversations that `{root}/datasets/{dataset}/{split}.json` names, with their judgements.

    Nothing is quarantined: that was done, counted and listed when they were prepared.

    Raises:
        DataError: the file names no prepared conversations.
        StorageError, CorruptObjectError: something is missing or damaged.
    """
    artifact = prepared_artifact(uri, CONVERSATIONS)
    manifest = artifact.manifest()
    conversations: list[Conversation] = []
    splits: dict[str, str] = {}
    qrels: Qrels = {}
    texts: dict[str, str] = {}
    for part, rows in _tables(artifact, manifest):
        if part == "qrels":
            for row in rows:
                qrels.setdefault(row["query_id"], {})[row["passage_id"]] = row["grade"]
        elif part == "gold-texts":
            texts = {row["passage_id"]: row["text"] for row in rows}
        else:
            for _, group in groupby(rows, lambda row: row["conversation"]):
                turns = list(group)
                conversation = _conversation(turns)
                conversations.append(conversation)
                if turns[0]["split"]:
                    splits[conversation.conversation_id] = turns[0]["split"]
    notes = tuple(manifest.metadata["notes"])
    return ConversationFile(uri, tuple(conversations), splits, qrels, gold_texts=texts, notes=notes)


def _tables(artifact: Artifact, manifest: Manifest) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for part in manifest.parts:
        if part.key.endswith(".parquet"):
            yield part.name, pq.read_table(artifact.fetch(part)).to_pylist()


def _conversation(rows: list[dict[str, Any]]) -> Conversation:
    # Files prepared before there were topics have no such column.
    turns = (
        Turn(row["query_id"], row["depth"], row["question"], row["answer"], row["rewrite"], row.get("topic", ""))
        for row in rows
    )
    first = rows[0]
    return Conversation(
        first["conversation_id"], tuple(turns), asked_before=first["asked_before"], facts=tuple(first["persona"])
    )


# The files that name artifacts.


def name_artifact(artifact: Artifact, dataset: str, part: str) -> str:
    """Write the file that names an artifact of a data set, in place of an earlier one, and return its URI."""
    key = f"{_FOLDER}/{dataset}/{part}.json"
    address = {"kind": artifact.kind, "name": artifact.name, "fingerprint": artifact.fingerprint}
    open_store(artifact.root).replace(key, sealed(address))
    return f"{artifact.root.rstrip('/')}/{key}"


def prepared_artifact(uri: str, kind: str) -> Artifact:
    """Return the artifact that a file names; it lies in the same root, wherever that is now.

    Raises:
        DataError: the file names none, or one of another kind.
        StorageError: the file is absent or damaged.
    """
    root, _, rest = uri.rpartition(f"/{_FOLDER}/")
    if not root or not rest.endswith(".json"):
        raise DataError(
            f"{uri}: is no prepared data set; name ROOT/{_FOLDER}/DATASET/PART.json as `raydistill prepare` wrote it"
        )
    address = unsealed(read_input(uri), uri)
    if address.get("kind") != kind:
        raise DataError(f"{uri}: names prepared {address.get('kind')}, not {kind}; take the file of the right part")
    return Artifact(root, address["kind"], address["name"], address["fingerprint"])


def corpus_files(patterns: Sequence[str], corpus_format: CorpusFormat) -> list[str]:
    """Return the URIs of the files of a corpus: those that the patterns name, or the parts of prepared ones, in order.

    Hugging Face data sets are returned as they are named.
    """
    if corpus_format == "huggingface":
        return list(patterns)
    files = input_files(patterns)
    if corpus_format != "prepared":
        return files
    artifacts = [prepared_artifact(uri, CORPUS) for uri in files]
    return [
        f"{artifact.root.rstrip('/')}/{part.key}"
        for artifact in artifacts
        for part in artifact.manifest().parts
        if part.key.endswith(".parquet")
    ]


def corpus_fingerprint(corpus: CorpusConfig) -> str:
    """Return a SHA-256 (64 hex characters) over what a corpus is read from. Raises StorageError when a file is absent."""
    if corpus.corpus_dataset is not None:
        found = [dataset_fingerprint(uri, corpus.corpus_dataset) for uri in corpus.corpus]
        return sha256_hex(canonical_json(found).encode())
    return input_fingerprint(corpus_files(corpus.corpus, corpus.corpus_format))
