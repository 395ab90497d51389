"""A small world for document encoders: passages of a few topics, sentences to ask with, and one recorded run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raydistill.config import LearnedDocumentsConfig, LexicalDocumentsConfig, StudentConfig
from raydistill.conversations.records import Passage
from raydistill.distill.document_mining import EXAMPLES
from raydistill.encoders.documents import load_document_encoder, load_term_counter
from raydistill.encoders.interface import SparseEncoder
from raydistill.encoders.lexical import count_statistics
from raydistill.index.candidates import parquet_bytes
from raydistill.index.passage_files import PassageFileWriter
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from tests.distill.conftest import WORDS

PASSAGES = 48
SENTENCES = 3


def passages() -> list[Passage]:
    """Return passages of three sentences; two thirds of a passage's words are its own topic's."""
    random = np.random.default_rng(3)
    made = []
    for number in range(PASSAGES):
        topic = random.choice(WORDS, 9, replace=False)
        sentences = [[*random.choice(topic, 4, replace=False), *random.choice(WORDS, 2)] for _ in range(SENTENCES)]
        made.append(Passage(f"p{number}", " ".join(" ".join(map(str, words)) + " ." for words in sentences)))
    return made


def sentence(passage: Passage, number: int) -> str:
    """Return one sentence of a passage."""
    return passage.text.split(" .")[number].strip()


def lexical_encoder(encoder: str) -> SparseEncoder:
    """Return BM25 over the passages."""
    student = StudentConfig(model=encoder)
    statistics = count_statistics(load_term_counter(student), [passage.text for passage in passages()])
    return load_document_encoder(LexicalDocumentsConfig(), student, statistics.to_bytes())


def put_corpus(root: str, folder: Path) -> Artifact:
    """Store the passages as a corpus of two parts."""
    artifact = Artifact(root, "corpus", "passages", fingerprint("corpus", 1, {}, {}))
    writer = ArtifactWriter(artifact)
    for name, part in (("00000-00000", passages()[:20]), ("00000-00001", passages()[20:])):
        file = PassageFileWriter(folder / f"{name}.parquet")
        for passage in part:
            file.add(passage)
        file.close()
        writer.put_part(name, file.path, ".parquet", rows=file.rows)
    writer.commit(["00000-00000", "00000-00001"], {"quarantined": 0})
    return artifact


def put_examples(root: str) -> Artifact:
    """Store the first sentence of every passage as a query, in two parts, and a run over some second sentences."""
    random = np.random.default_rng(4)
    own: list[dict[str, Any]] = [
        {
            "text": sentence(passage, 0),
            "gold": [number],
            "passages": sorted({number, *random.choice(PASSAGES, 8, replace=False).tolist()}),
            "recorded": None,
        }
        for number, passage in enumerate(passages())
    ]
    run = []
    for number in range(0, PASSAGES, 6):
        shown = sorted({number, *random.choice(PASSAGES, 8, replace=False).tolist()})
        scores = [
            float(random.normal() + 3 * (each == number)) if each % 2 == number % 2 else float("nan") for each in shown
        ]
        run.append({"text": sentence(passages()[number], 1), "gold": [number], "passages": shown, "recorded": scores})
    artifact = Artifact(root, "document-examples", "tiny", fingerprint("document-examples", 1, {}, {}))
    writer = ArtifactWriter(artifact)
    parts = {"own-a": own[:20], "own-b": own[20:], "run-000": run}
    for name, rows in parts.items():
        writer.put_part(name, parquet_bytes(pa.Table.from_pylist(rows, schema=EXAMPLES)), ".parquet", rows=len(rows))
    writer.commit(list(parts), {})
    return artifact


def learned(encoder: str, **training: Any) -> LearnedDocumentsConfig:
    """Return a configuration that trains quickly and without dropout."""
    return LearnedDocumentsConfig.model_validate(
        {
            "model": encoder,
            "max_tokens": 64,
            "training": {
                "runs": [{"name": "splade", "run": "/run.trec"}],
                "steps": 6,
                "global_batch": 5,
                "passages": 3,
                "chunk": 20,
                "max_tokens": 48,
                "dropout": 0.0,
                "learning_rate": 2e-3,
                "objective": "kld(teacher=lexical, tau=1, student_tau=1) + 0.2*kld(teacher=recorded) + 0.1*infonce",
                "passage_regularisation": {"terms": "0.001*flops"},
                "checkpoint_steps": 1,
                "log_steps": 1,
                **training,
            },
        }
    )
