"""The stage that trains a document encoder: it learns, is trained once, and the index follows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raydistill.cli import main
from raydistill.config import DistillConfig, LearnedDocumentsConfig, SpladeDocumentsConfig
from raydistill.config_loading import build_config
from raydistill.conversations.readers import read_conversations
from raydistill.conversations.records import ConversationalQuery
from raydistill.distill.document_examples import training_turns
from raydistill.distill.document_mining import first_stage, make_examples, recorded_query_ids
from raydistill.distill.document_train import (
    document_encoder_artifact,
    document_records,
    train_documents,
    with_trained_encoder,
)
from raydistill.encoders.documents import load_document_encoder
from raydistill.encoders.interface import SparseEncoder
from raydistill.encoders.splade import SpladeEncoder, SpladeModel
from raydistill.errors import ConfigError, DataError
from raydistill.index.build import build_index, planned_index
from raydistill.index.corpus import prepare_corpus
from raydistill.storage.artifacts import Artifact
from tests.distill.document_world import PASSAGES, passages, sentence

Turns = list[ConversationalQuery]


def conversation(name: str, split: str, first: int) -> dict[str, Any]:
    turns = [
        {"turn_id": n + 1, "query_id": f"{name}<::>{n + 1}", "user": sentence(passages()[first + n], 1), "agent": "w1 w2"}
        for n in range(3)
    ]
    return {"conversation_id": name, "split": split, "turns": turns}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a corpus, six conversations of two splits, judgements, and a run over all of them; one root for all tests."""
    folder = tmp_path_factory.mktemp("world")
    told = [conversation(f"c{n}", "test" if n > 3 else "train", 3 * n) for n in range(6)]
    lines = {
        "corpus.jsonl": [json.dumps({"_id": one.passage_id, "title": "", "text": one.text}) for one in passages()],
        "conversations.jsonl": [json.dumps(one) for one in told],
        "qrels.tsv": ["query-id\tcorpus-id\tscore"],
        "run.trec": [],
        "rewrites.jsonl": [json.dumps({"_id": f"c{n}<::>2", "text": f"w{n} w4"}) for n in (1, 3, 5)],
    }
    for number, one in enumerate(told):
        for place, turn in enumerate(one["turns"]):
            right = 3 * number + place
            lines["qrels.tsv"].append(f"{turn['query_id']}\tp{right}\t1")
            for rank, passage in enumerate([right, (right + 7) % PASSAGES, (right + 11) % PASSAGES]):
                lines["run.trec"].append(f"{turn['query_id']} Q0 p{passage} {rank + 1} {30 - 5 * rank} old")
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content) + "\n")
    return folder


def config(world: Path, encoder: str, run: str = "run.trec", **training: Any) -> DistillConfig:
    source = {"conversations": str(world / "conversations.jsonl"), "qrels": str(world / "qrels.tsv")}
    return build_config(
        {
            "run": "tiny",
            "root": str(world / "root"),
            "data": {
                "corpus": [str(world / "corpus.jsonl")],
                "train": {**source, "split": "train"},
                "test": {**source, "split": "test"},
            },
            "teachers": [{"engine": "recorded", "name": "a", "rewrites": "/r"}],
            "student": {"model": encoder, "text": {"max_tokens": 64}},
            "index": {
                "name": "tiny",
                "passages_per_segment": 20,
                "documents": {
                    "kind": "learned",
                    "model": encoder,
                    "max_tokens": 64,
                    "training": {
                        "runs": [
                            {"name": "old", "run": str(world / run)},
                            {
                                "name": "rewritten",
                                "run": str(world / run),
                                "queries": "rewrites",
                                "rewrites": str(world / "rewrites.jsonl"),
                            },
                        ],
                        "own_queries": 48,
                        "negatives_depth": 10,
                        "steps": 60,
                        "global_batch": 8,
                        "passages": 3,
                        "chunk": 16,
                        "max_tokens": 48,
                        "learning_rate": 3e-3,
                        "dropout": 0.0,
                        "objective": "kld(teacher=lexical, tau=1) + 0.2*infonce",
                        "checkpoint_steps": 50,
                        "max_failures": 0,
                        **training,
                    },
                },
            },
        }
    )


def turns_of(settings: DistillConfig) -> tuple[Turns, Any]:
    source, *_ = settings.data.train
    train, test = (read_conversations(each, "mtrag", 0) for each in (source, settings.data.test))
    documents = settings.index.documents
    assert isinstance(documents, LearnedDocumentsConfig)
    return training_turns(train, {"data.test": test}, recorded_query_ids(documents.training)), train.qrels


def corpus_of(settings: DistillConfig) -> Artifact:
    return prepare_corpus(settings.data, settings.index.passages_per_segment, settings.index.workers, settings.root)


def reciprocal_rank(encoder: SparseEncoder) -> float:
    """Return how well the third sentences, which nobody trained on, find their passages."""
    asked = encoder.encode_queries([sentence(passage, 2) for passage in passages()]).to_dense()
    scores = asked @ encoder.encode_passages([passage.text for passage in passages()]).to_dense().T
    better = (scores > np.diag(scores)[:, None]).sum(axis=1)
    return float((1 / (1 + better)).mean())


def test_an_encoder_learns_is_trained_once_and_the_index_follows_it(
    ray_cluster: None, world: Path, tiny_encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(world, tiny_encoder)
    turns, qrels = turns_of(settings)
    corpus = corpus_of(settings)
    encoder = train_documents(settings, turns, qrels, corpus)
    assert encoder == document_encoder_artifact(settings, turns, qrels, corpus)
    assert [record["step"] for record in document_records(settings, encoder)] == [10, 20, 30, 40, 50, 60]
    manifest = encoder.manifest()
    assert train_documents(settings, turns, qrels, corpus) == encoder
    assert encoder.manifest() == manifest

    trained = with_trained_encoder(settings, encoder)
    learned = load_document_encoder(trained.index.documents, trained.student, device="cpu")
    assert isinstance(learned, SpladeEncoder)
    start = SpladeEncoder(
        SpladeModel.from_config(trained.index.documents.starting_model()), learned.tokenizer, 64, device="cpu"
    )
    assert reciprocal_rank(learned) > reciprocal_rank(start) + 0.2

    taken = load_document_encoder(SpladeDocumentsConfig(model=encoder.uri, max_tokens=64), trained.student, device="cpu")
    texts = [passage.text for passage in passages()[:9]]
    np.testing.assert_array_equal(
        taken.encode_passages(texts).to_dense(), learned.encode_passages(texts).to_dense(), "another run takes it by address"
    )
    assert main(["export-student", encoder.uri, "--to", str(world / "taken-out")]) == 0
    assert capsys.readouterr().out.split() == ["document", "encoder", str(world / "taken-out")]

    assert planned_index(trained.index, trained.student, corpus, trained.root) is None
    version = build_index(trained.index, trained.student, corpus, trained.root)
    assert planned_index(trained.index, trained.student, corpus, trained.root) == version
    other_student = config(world, tiny_encoder).model_copy(
        update={"train": trained.train.model_copy(update={"epochs": 9.0})}
    )
    same = with_trained_encoder(other_student, document_encoder_artifact(other_student, turns, qrels, corpus))
    assert planned_index(same.index, same.student, corpus, same.root) == version
    other = config(world, tiny_encoder, learning_rate=1e-3)
    changed = with_trained_encoder(other, document_encoder_artifact(other, turns, qrels, corpus))
    assert planned_index(changed.index, changed.student, corpus, changed.root) is None


def test_examples_hold_no_test_turn_and_a_run_of_test_turns_is_refused(
    ray_cluster: None, world: Path, tiny_encoder: str
) -> None:
    settings = config(world, tiny_encoder)
    turns, qrels = turns_of(settings)
    corpus = corpus_of(settings)
    stage = build_index(first_stage(settings.index), settings.student, corpus, settings.root)
    examples = make_examples(settings, turns, qrels, corpus, stage)
    recorded = pq.read_table(examples.fetch(examples.part("run-000"))).to_pylist()
    assert [row["text"] for row in recorded] == [turn.question for turn in turns]
    assert [row["gold"] for row in recorded] == [[number] for number in range(len(turns))]
    for number, row in enumerate(recorded):
        scores = {passage: score for passage, score in zip(row["passages"], row["recorded"], strict=True) if score == score}
        assert scores == {number: 30.0, (number + 7) % PASSAGES: 25.0, (number + 11) % PASSAGES: 20.0}
    rewritten = pq.read_table(examples.fetch(examples.part("run-001"))).to_pylist()
    assert [(row["text"], row["gold"]) for row in rewritten] == [("w1 w4", [4]), ("w3 w4", [10])]
    assert examples.manifest().metadata["own"] == PASSAGES

    tested = [line for line in (world / "run.trec").read_text().splitlines() if line.startswith(("c4", "c5"))]
    (world / "tested.trec").write_text("\n".join(tested) + "\n")
    peeking = config(world, tiny_encoder, run="tested.trec")
    with pytest.raises(DataError, match=r"none of its queries is a turn of data\.train"):
        make_examples(peeking, turns, qrels, corpus, stage)


def test_an_encoder_that_is_not_trained_yet_cannot_be_loaded(world: Path, tiny_encoder: str) -> None:
    settings = config(world, tiny_encoder)
    with pytest.raises(ConfigError, match="is not trained yet; run the stage documents"):
        load_document_encoder(settings.index.documents, settings.student)
