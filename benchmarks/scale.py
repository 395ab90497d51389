"""Build and search up to 5 million synthetic passages: `python benchmarks/scale.py --folder FOLDER --out
benchmarks/results/scale.json`.

Passages come from `search_corpora`, segment by segment of a million; building and searching are processes of their own.
Bounds are stated here beforehand and compared with what was measured:

    a building worker    BUILD_BYTES a posting of its one segment, and BASE_BYTES
    a searching process  4.1 bytes a passage of the largest segment, 60 bytes a term and segment, and BASE_BYTES; memory that
                         is mapped from files does not count, the kernel drops it when it needs it

The driver holds figures only. Cost a passage at each size is drawn beside the JSON file. Segments stay in the folder and
are not built again, so that the run can be done in pieces (`--parts build`, then `--parts search`). Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from processes import in_a_process, machine, memory, reset_peak
from search_corpora import VOCABULARY, SyntheticCorpus

SIZES = (10_000, 100_000, 1_000_000, 2_000_000, 5_000_000)
SEGMENT = 1_000_000
QUERIES = 60
BATCH_TIMES = 3
BUILD_BYTES = 24
BASE_BYTES = 450 * 2**20
DEPTHS = (10, 1000)


def main() -> int:
    """Measure, print a table, store the result and its chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where segments are kept; 0.85 GB a million passages")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--parts", nargs="+", choices=("build", "search"), default=["build", "search"])
    parser.add_argument("--out", type=Path, help="JSON file to write or to update; the chart lies beside it as .html")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        task, subject = options.worker
        print(
            json.dumps(_build(options.folder, subject) if task == "build" else _search(options.folder, json.loads(subject)))
        )
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out and options.out.is_file() else {}
    result |= {"machine": machine(), "bounds": {"build_bytes_a_posting": BUILD_BYTES, "base_bytes": BASE_BYTES}}
    sizes = result.setdefault("sizes", {})
    for size in options.sizes:
        entry = sizes.setdefault(str(size), {"passages": size})
        names = _segments(size)
        if "build" in options.parts:
            for name in names:
                if not (options.folder / f"{name}.json").is_file():
                    _worker(options.folder, "build", name)
            built = [json.loads((options.folder / f"{name}.json").read_text()) for name in names]
            entry["segments"] = len(names)
            entry["postings"] = sum(each["postings"] for each in built)
            entry["bytes"] = sum(each["bytes"] for each in built)
            entry["build_seconds"] = sum(each["seconds"] for each in built)
            entry["build_peak_bytes"] = max(each["peak"] for each in built)
            entry["build_bound_bytes"] = max(BUILD_BYTES * each["postings"] for each in built) + BASE_BYTES
        if "search" in options.parts:
            entry |= _worker(options.folder, "search", json.dumps(names))
            entry["search_bound_bytes"] = int(4.1 * min(size, SEGMENT)) + 60 * VOCABULARY * len(names) + BASE_BYTES
        print(json.dumps(entry), flush=True)
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    _print(sizes)
    if options.out and all("search" in entry and "build_seconds" in entry for entry in sizes.values()):
        options.out.with_suffix(".html").write_text(_page(sizes))
    return 0


def _segments(size: int) -> list[str]:
    """Return the names of the segments of so many passages: first passage and count."""
    return [f"{first}-{min(SEGMENT, size - first)}" for first in range(0, size, SEGMENT)]


def _worker(folder: Path, task: str, subject: str) -> Any:
    return json.loads(in_a_process([__file__, "--folder", str(folder), "--worker", task, subject], 1).splitlines()[-1])


def _build(folder: Path, name: str) -> dict[str, Any]:
    from raydistill.index.segment import write_segment

    first, count = map(int, name.split("-"))
    corpus = SyntheticCorpus()
    vectors = corpus.passages(first, count)
    write_segment(folder / f"{name}.seg", vectors.select([0]), ["0"], "f16")
    ids = [str(number) for number in range(first, first + count)]
    # What making the passages left behind is no part of building.
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset_peak()
    start = time.perf_counter()
    write_segment(folder / f"{name}.seg", vectors, ids, "f16")
    seconds = time.perf_counter() - start
    size = (folder / f"{name}.seg").stat().st_size
    built = {"seconds": seconds, "peak": memory("VmHWM"), "postings": vectors.nnz, "bytes": size}
    (folder / f"{name}.json").write_text(json.dumps(built))
    return built


def _search(folder: Path, names: list[str]) -> dict[str, Any]:
    from raydistill.index.search import Searcher
    from raydistill.index.segment import Segment

    corpus = SyntheticCorpus()
    queries = corpus.queries(QUERIES)
    reset_peak()
    searchers = {
        threads: Searcher([Segment(folder / f"{name}.seg") for name in names], threads=threads) for threads in (1, 2)
    }
    # The files are read from the disk once, which is not what is measured.
    searchers[1].measured_search(queries, max(DEPTHS), True)
    found: dict[str, Any] = {}
    for k in DEPTHS:
        for exhaustive in (False, True):
            times = []
            read = np.zeros(3, dtype=np.int64)
            for row in range(-1, QUERIES):
                one = queries.select([max(0, row)])
                start = time.perf_counter()
                _, cost = searchers[1].measured_search(one, k, exhaustive)
                times.append(time.perf_counter() - start)
                read += [int(cost.postings[0]), int(cost.vector_entries[0]), int(cost.matching[0])] if row >= 0 else 0
            found[f"k={k}" + (" exhaustive" if exhaustive else "")] = {
                "p50_ms": float(np.median(times[1:]) * 1e3),
                "p99_ms": float(np.percentile(times[1:], 99) * 1e3),
                "mean_ms": float(np.mean(times[1:]) * 1e3),
                "postings_read": float(read[0] / read[2]),
                "vector_entries_read": float(read[1] / read[2]),
            }
    batch = {}
    for threads in (1, 2):
        times = []
        for _ in range(BATCH_TIMES):
            start = time.perf_counter()
            searchers[threads].search(queries, DEPTHS[0])
            times.append(time.perf_counter() - start)
        batch[threads] = min(times)
    return {
        "search": found,
        "two_threads": batch[1] / batch[2],
        "search_anonymous_bytes": memory("RssAnon"),
        "search_peak_bytes_with_mapped_files": memory("VmHWM"),
    }


def _print(sizes: dict[str, Any]) -> None:
    columns = ("passages", "build us", "bytes", "build peak / bound MB", "anonymous / bound MB")
    print(
        "".join(f"{column:>{width}s}" for column, width in zip(columns, (10, 10, 8, 24, 24), strict=True)), " ns a passage"
    )
    for size, entry in sizes.items():
        if "search" not in entry or "build_seconds" not in entry:
            continue
        count = int(size)
        speeds = "  ".join(f"{name} {at['mean_ms'] * 1e6 / count:.2f}" for name, at in entry["search"].items())
        print(
            f"{count:10d}{entry['build_seconds'] / count * 1e6:10.2f}{entry['bytes'] / count:8.0f}"
            f"{entry['build_peak_bytes'] / 1e6:14.0f} / {entry['build_bound_bytes'] / 1e6:.0f}"
            f"{entry['search_anonymous_bytes'] / 1e6:16.0f} / {entry['search_bound_bytes'] / 1e6:.0f}     {speeds}"
        )


def _page(sizes: dict[str, Any]) -> str:
    from raydistill.evaluation.page import page
    from raydistill.evaluation.plots import Series, line_chart

    counts = sorted(map(int, sizes))
    xs = np.log10(counts).tolist()
    ticks = [(x, f"{count:,}", "") for x, count in zip(xs, counts, strict=True) if count != 2_000_000]
    entries = [sizes[str(count)] for count in counts]
    build = [entry["build_seconds"] / count * 1e6 for entry, count in zip(entries, counts, strict=True)]
    search = [
        Series(
            name,
            slot,
            xs,
            [entry["search"][name]["mean_ms"] * 1e6 / count for entry, count in zip(entries, counts, strict=True)],
        )
        for slot, name in enumerate(entries[0]["search"])
    ]
    charts = [
        line_chart(
            "Build time a passage by number of passages", [Series("build", 0, xs, build)], "passages", "µs a passage", ticks
        ),
        line_chart("Search time a passage by number of passages", search, "passages", "ns a passage and query", ticks),
    ]
    return page("Cost a passage by size", "".join(charts))


if __name__ == "__main__":
    raise SystemExit(main())
