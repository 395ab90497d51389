"""What a learned document encoder finds beside its teachers: `python benchmarks/document_encoder.py --config
jobs/configs/mtrag-learned.yaml --out FILE [section.field=value ...]`.

Trains the encoder of a configuration (stage `documents`) without the held-out conversations (data.validation), and searches
for their judged turns as every recorded teacher rewrote them: with the encoder, with BM25 over the same vocabulary, with the
dense encoder that it learns from, and with the sum of both that it learns from where `lexical_weight` says so. All rank the
whole pool of passages exactly. No student is trained.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from folds import CHECKOUT
from held_out import recorded_rewrites
from numpy.typing import NDArray
from processes import machine

from raydistill.actor_pool import connect
from raydistill.config import LearnedDocumentsConfig
from raydistill.config_loading import load_config
from raydistill.conversations.records import ConversationalQuery, ConversationSet
from raydistill.distill.document_mining import first_stage
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.dense import DenseEncoder
from raydistill.encoders.documents import load_document_encoder
from raydistill.evaluation.measures import score_run
from raydistill.evaluation.runs import Qrels, Run
from raydistill.evaluation.sparsity import active_counts, active_share, query_flops
from raydistill.index.build import build_index
from raydistill.index.corpus import passage_parts
from raydistill.index.passage_texts import PassageTexts
from raydistill.pipeline import Chain
from raydistill.teachers.rewriting import rewrite_texts

MEASURES = ("nDCG@10", "R@10", "R@100")
DEPTH = 100
AT_A_TIME = 1024
"""Passages that are dense at a time: 1,024 rows of 30,522 floats are 125 MB."""
ALL = "all"

BM25 = "BM25"
Scores = NDArray[np.float32]
"""[queries, passages]."""
Values = NDArray[np.float64]
"""[queries]."""
Row = dict[str, Any]


def main() -> int:
    """Train, search, print a row a system, form and source, store them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=CHECKOUT / "jobs" / "configs" / "mtrag-learned.yaml")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_args()
    versions = {name: version(name) for name in ("raydistill", "ray", "torch", "transformers", "deepspeed")}
    chain = Chain(load_config(options.config, options.overrides))
    held_out = chain.inputs.validation
    if not isinstance(chain.config.index.documents, LearnedDocumentsConfig) or held_out is None:
        raise SystemExit(f"{options.config}: give index.documents of kind learned, and data.validation to measure on")
    chain.check("documents")
    connect(chain.config.ray)
    rows = _rows(chain, held_out)
    for row in rows:
        cells = "  ".join(f"{name} {row[name]:.3f}" for name in MEASURES)
        cost = f"  L0 {row['terms']:.1f}  FLOPS {row['flops']:.2f}" if "flops" in row else ""
        print(f"{row['source']:8} {row['turns']:4} {row['form']:18} {row['system']:24} {cells}{cost}")
    if options.out:
        content = {
            "config": options.config.name,
            "overrides": [each for each in options.overrides if not each.startswith(("root=", "vars."))],
            "systems": rows,
            "machine": machine(_device()),
            "versions": versions,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 0


@dataclass(frozen=True)
class _Asked:
    """Judged held-out turns, and their texts by form: the last turn, and each recorded teacher's rewrites."""

    turns: list[ConversationalQuery]
    source_of: dict[str, str]
    qrels: Qrels
    forms: dict[str, list[str]]

    @property
    def texts(self) -> list[str]:
        """All texts, form by form."""
        return [text for form in self.forms.values() for text in form]


def _asked(chain: Chain, held_out: ConversationSet) -> _Asked:
    judged = [query for query in held_out.queries() if held_out.qrels.get(query.query_id)]
    source_of = {turn.query_id: each.source for each in held_out.conversations for turn in each.asked}
    forms = {"last turn": [query.question for query in judged]}
    for teacher, artifact in recorded_rewrites(held_out, chain).items():
        rewrites = rewrite_texts(artifact)
        # Where a rewrite failed the last turn stands in, as in an evaluation.
        forms[teacher] = [rewrites.get(query.query_id, query.question) for query in judged]
    return _Asked(judged, source_of, held_out.qrels, forms)


def _rows(chain: Chain, held_out: ConversationSet) -> list[Row]:
    asked = _asked(chain, held_out)
    chain.documents()
    parts = passage_parts(chain.corpus.manifest())
    ids: list[str] = []
    for part in parts:
        ids += pq.read_table(chain.corpus.fetch(part), columns=["passage_id"])["passage_id"].to_pylist()
    found, costs = _ranked(chain, asked.texts, PassageTexts(chain.corpus, parts).texts(np.arange(len(ids))))
    rows: list[Row] = []
    for number, form in enumerate(asked.forms):
        own = np.arange(number * len(asked.turns), (number + 1) * len(asked.turns))
        for system, scores in found.items():
            cost = {name: values[own] for name, values in costs.get(system, {}).items()}
            rows += _measured(form, system, scores[own], cost, asked, ids)
    return rows


def _ranked(chain: Chain, asked: list[str], texts: list[str]) -> tuple[dict[str, Scores], dict[str, dict[str, Values]]]:
    """Return system -> scores of all pairs, and sparse system -> terms and FLOPS of each query."""
    config, documents = chain.config, chain.settled.index.documents
    assert isinstance(documents, LearnedDocumentsConfig)
    stage = build_index(first_stage(config.index), config.student, chain.corpus, config.root)
    lexical = load_document_encoder(first_stage(config.index).documents, config.student, stage.open_statistics())
    found: dict[str, Scores] = {}
    costs: dict[str, dict[str, Values]] = {}
    for name, encoder in ((BM25, lexical), ("document encoder", load_document_encoder(documents, config.student))):
        passages, queries = encoder.encode_passages(texts), encoder.encode_queries(asked)
        found[name] = _scores(queries, passages)
        share = active_share(active_counts(passages), len(passages))
        costs[name] = {"terms": queries.lengths().astype(np.float64), "flops": query_flops(queries, share)}
        print(f"{name}: {passages.lengths().mean():.1f} terms a passage")
    training = documents.training
    if training.dense_teacher is not None:
        dense = DenseEncoder(training.dense_teacher, "dense_teacher", torch.device(_device()))
        found["dense teacher"] = (dense.vectors(asked) @ dense.vectors(texts).T).cpu().numpy()
        if training.lexical_weight is not None:
            found["dense teacher + BM25"] = found["dense teacher"] + training.lexical_weight * found[BM25]
    return found, costs


def _measured(
    form: str, system: str, scores: Scores, cost: dict[str, Values], asked: _Asked, ids: list[str]
) -> Iterator[Row]:
    """Yield a row a source, and one of all."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH].tolist()
    rankings = {
        query.query_id: tuple((ids[place], float(scores[row, place])) for place in places)
        for row, (query, places) in enumerate(zip(asked.turns, top, strict=True))
    }
    sources = [*dict.fromkeys(asked.source_of[query.query_id] for query in asked.turns)]
    for source in [*sources, ALL] if len(sources) > 1 else [ALL]:
        turns = [row for row, query in enumerate(asked.turns) if source in (ALL, asked.source_of[query.query_id])]
        qrels = {asked.turns[row].query_id: asked.qrels[asked.turns[row].query_id] for row in turns}
        means = score_run(Run(system, rankings), qrels, MEASURES).means()
        spent = {name: float(values[turns].mean()) for name, values in cost.items()}
        yield {"source": source, "turns": len(turns), "form": form, "system": system, **means, **spent}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _scores(queries: SparseBatch, passages: SparseBatch) -> Scores:
    return np.concatenate(list(_columns(queries, passages)), axis=1)


def _columns(queries: SparseBatch, passages: SparseBatch) -> Iterator[Scores]:
    asked = queries.to_dense()
    for start in range(0, len(passages), AT_A_TIME):
        yield asked @ passages.select(np.arange(start, min(start + AT_A_TIME, len(passages)))).to_dense().T


if __name__ == "__main__":
    sys.exit(main())
