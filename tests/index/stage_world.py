"""A small corpus, and what the tests of corpus, index and mining do with it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from raydistill.config import (
    ConversationSource,
    DataConfig,
    DistillConfig,
    IndexConfig,
    PoolConfig,
    RecordedTeacherConfig,
    ScoreConfig,
    StudentConfig,
)
from raydistill.conversations.records import Conversation, ConversationalQuery, ConversationSet, Turn
from raydistill.index.build import build_index
from raydistill.index.corpus import passage_parts, prepare_corpus
from raydistill.index.mine import mine_candidates
from raydistill.index.passage_files import passage_batches
from raydistill.index.publish import IndexVersion
from raydistill.storage.artifacts import Artifact
from raydistill.teachers.pool import teach

WORDS = ["river", "mountain", "paris", "france", "capital", "music", "piano", "tower", "bridge", "history", "war", "king"]
WORDS += ["queen", "ship", "sea", "peace"]
WORKERS = PoolConfig(actors=1, cpus=1)


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


def lexical_config(**changes) -> IndexConfig:
    return IndexConfig(**{"passages_per_segment": 100, "impacts": "f32", "workers": WORKERS, **changes})


def save_tiny_splade(folder: str, tokenizer_of: str) -> None:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
