"""A tiny encoder, a small index and mined candidates, all real, for tests of the training stream and loop."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydistill.encoders.batch import SparseBatch
from raydistill.index.candidates import CANDIDATES
from raydistill.index.publish import IndexVersion, IndexWriter
from raydistill.index.segment import write_segment
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint

WORDS = [f"w{number}" for number in range(90)]
TERMS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
PASSAGES = 60


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random two-layer BERT with its MLM head and a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    folder = str(tmp_path_factory.mktemp("tiny-encoder"))
    backend = Tokenizer(models.WordLevel({term: number for number, term in enumerate(TERMS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(TERMS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def build_index(root: str) -> IndexVersion:
    """Publish 60 passages of four terms each, in two segments."""
    random = np.random.default_rng(0)
    rows = [
        {int(term): float(random.uniform(0.5, 2.0)) for term in random.choice(np.arange(5, len(TERMS)), 4, replace=False)}
        for _ in range(PASSAGES)
    ]
    writer = IndexWriter(root, "tiny", fingerprint("index", 1, {}, {}))
    for name, start, stop in (("a", 0, 25), ("b", 25, PASSAGES)):
        vectors = SparseBatch.from_rows(rows[start:stop], len(TERMS))
        path = Path(root) / f"{name}.seg"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_segment(path, vectors, [f"p{number}" for number in range(start, stop)], "f32")
        writer.put_segment(name, path, passages=len(vectors), postings=vectors.nnz)
    return writer.commit(["a", "b"], len(TERMS), {})


def put_candidates(root: str, queries: int = 22, parts: int = 3) -> Artifact:
    """Store mined queries with the scores of two teachers, some without gold, one without the second teacher."""
    random = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    for number in range(queries):
        passages = np.sort(random.choice(PASSAGES, 30, replace=False))
        scores = random.gamma(2.0, 1.0, (2, 30)).astype(np.float32)
        rewrites = [np.sort(random.choice(np.arange(5, len(TERMS)), 3, replace=False)).tolist() for _ in range(2)]
        rows.append(
            {
                "query_id": f"c{number // 4}<::>{number % 4 + 1}",
                "conversation_id": f"c{number // 4}",
                "source": f"family {number % 3}",
                "depth": number % 4 + 1,
                "question": " ".join(random.choice(WORDS, 4)),
                "history": [
                    {"question": " ".join(random.choice(WORDS, 4)), "answer": " ".join(random.choice(WORDS, 6))}
                    for _ in range(number % 4)
                ],
                "gold": [] if number % 5 == 4 else [int(passages[3])],
                "passages": passages.tolist(),
                "scores": [scores[0].tolist(), None if number == 7 else scores[1].tolist()],
                "rewrite_terms": [rewrites[0], None if number == 7 else rewrites[1]],
                "rewrite_weights": [[1.0, 2.0, 0.5], None if number == 7 else [0.5, 1.5, 3.0]],
                # Descending numbers, some of them no candidates; of every third query nobody asked a student.
                "student_best": None if number % 3 == 0 else list(range(PASSAGES - 1 - number % 5, 0, -7)),
            }
        )
    artifact = Artifact(root, "candidates", "tiny", fingerprint("candidates", 1, {"queries": queries, "parts": parts}, {}))
    writer = ArtifactWriter(artifact)
    names = [f"{number:05d}" for number in range(parts)]
    for number, name in enumerate(names):
        table = pa.Table.from_pylist(rows[number::parts], schema=CANDIDATES)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        writer.put_part(name, buffer.getvalue(), ".parquet", rows=len(table))
    writer.commit(names, {"teachers": ["a", "b"]})
    return artifact


@pytest.fixture
def mined(tmp_path: Path) -> tuple[Artifact, IndexVersion]:
    """Candidates and the index they were mined from, in a root of their own."""
    root = str(tmp_path / "root")
    os.makedirs(root)
    return put_candidates(root), build_index(root)
