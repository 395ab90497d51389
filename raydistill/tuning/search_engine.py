"""Which setting of Seismic is the fastest that finds enough: builds, measures against the exact search, and picks.

Times are of one query after another on one thread of this process, the exact scoring of what was found included; a first
pass over all queries, which is not timed, brings the index into memory. Recall of a query is the share of the exact top k
whose place is filled: a found passage counts when its score reaches that of the k-th, so ties cannot cost recall.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Protocol

import numpy as np
from rich.table import Table

from raydistill.actor_pool import connect
from raydistill.config import RayConfig, SeismicBuildConfig, SeismicEngine, TuneSearchConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.evaluation import page
from raydistill.evaluation.plots import Point, scatter_chart
from raydistill.index.approximate import build_approximate
from raydistill.index.publish import IndexVersion
from raydistill.index.search import open_searcher
from raydistill.index.search_result import SearchResult
from raydistill.index.seismic import open_approximate
from raydistill.progress import track
from raydistill.tuning.front import pareto_front

_FRONT, _OTHER = 0, 4


class _Engine(Protocol):
    def search(self, queries: SparseBatch, k: int) -> SearchResult: ...


@dataclass(frozen=True)
class Measured:
    """One setting: its name, its parameters (None for the exact engine), and what was measured.

    Attributes:
        recall: mean share of the exact top k, 0..1; lowest: that of the worst query.
        p50_ms, p99_ms: of one query, milliseconds.
        megabytes: of the Seismic index files.
    """

    label: str
    engine: dict[str, object] | None
    recall: float
    lowest: float
    p50_ms: float
    p99_ms: float
    megabytes: float


def tune_search(version: IndexVersion, config: TuneSearchConfig, queries: SparseBatch, ray: RayConfig) -> list[Measured]:
    """Measure the exact engine (first) and every setting of the grid on an index version.

    Builds are artifacts of the run root and are not repeated. Queries beyond `config.queries` are left out.

    Raises ConfigError where the library is not installed.
    """
    connect(ray)
    asked = queries.select(np.arange(min(config.queries, len(queries))))
    exact = open_searcher(version)
    truth, milliseconds = _timed(exact, asked, config.k)
    measured = [_measured("exact", None, truth, truth, milliseconds, 0.0)]
    builds = list(product(config.n_postings, config.summary_energy, config.centroid_fraction))
    settings = list(product(config.query_cut, config.heap_factor))
    with track("search", len(builds) * len(settings), "settings") as advance:
        for n_postings, energy, fraction in builds:
            build = SeismicBuildConfig(n_postings=n_postings, summary_energy=energy, centroid_fraction=fraction)
            artifact = build_approximate(version, build, config.workers)
            megabytes = sum(part.size for part in artifact.manifest().parts) / 1e6
            for cut, factor in settings:
                engine = SeismicEngine(build=build, query_cut=cut, heap_factor=factor)
                found, milliseconds = _timed(open_approximate(artifact, exact, cut, factor), asked, config.k)
                label = f"postings {n_postings}, energy {energy:g}, centroids {fraction:g}, cut {cut}, heap {factor:g}"
                measured.append(_measured(label, engine, found, truth, milliseconds, megabytes))
                advance(1)
    return measured


def chosen(measured: Sequence[Measured], recall: float) -> Measured | None:
    """Return the approximate setting with the lowest median time among those that reach the recall; None without one."""
    enough = [each for each in measured if each.engine is not None and each.recall >= recall]
    return min(enough, key=lambda each: (each.p50_ms, -each.recall), default=None)


def recalls(found: SearchResult, truth: SearchResult) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return each query's recall, float64 [B]; 1 where the exact search finds nothing."""
    shares = np.ones(len(truth.scores))
    for row, exact in enumerate(truth.scores):
        wanted = exact[np.isfinite(exact)]
        if len(wanted):
            shares[row] = np.count_nonzero(found.scores[row] >= wanted[-1]) / len(wanted)
    return shares


def _timed(engine: _Engine, queries: SparseBatch, k: int) -> tuple[SearchResult, list[float]]:
    result = engine.search(queries, k)
    milliseconds = []
    for row in range(len(queries)):
        query = queries.select([row])
        started = time.perf_counter()
        engine.search(query, k)
        milliseconds.append((time.perf_counter() - started) * 1e3)
    return result, milliseconds


def _measured(
    label: str,
    engine: SeismicEngine | None,
    found: SearchResult,
    truth: SearchResult,
    milliseconds: Sequence[float],
    megabytes: float,
) -> Measured:
    shares = recalls(found, truth)
    p50, p99 = np.percentile(milliseconds, [50, 99]).tolist()
    settings = None if engine is None else engine.model_dump(mode="json")
    return Measured(label, settings, float(shares.mean()), float(shares.min()), p50, p99, megabytes)


def console_table(measured: Sequence[Measured], config: TuneSearchConfig) -> Table:
    """Return the settings as a table for a terminal: fastest first, those of the front starred, the chosen one bold."""
    pick, front = chosen(measured, config.recall), _front(measured)
    table = Table(title=f"top {config.k}, recall wanted {config.recall:g}", title_justify="left", header_style="bold")
    table.add_column("setting", overflow="fold")
    for name in ("recall", "worst query", "p50 ms", "p99 ms", "MB", "front"):
        table.add_column(name, justify="right")
    for each in sorted(measured, key=lambda one: one.p50_ms):
        cells = [f"{each.recall:.4f}", f"{each.lowest:.2f}", f"{each.p50_ms:.3f}", f"{each.p99_ms:.3f}"]
        size = f"{each.megabytes:.1f}" if each.engine else ""
        table.add_row(each.label, *cells, size, "*" if each in front else "", style="bold" if each is pick else None)
    return table


def results_json(measured: Sequence[Measured], config: TuneSearchConfig) -> bytes:
    """Return everything that was measured, and the choice, as readable JSON."""
    pick = chosen(measured, config.recall)
    document = {
        "k": config.k,
        "recall_wanted": config.recall,
        "chosen": None if pick is None else asdict(pick),
        "measured": [asdict(each) for each in measured],
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def results_page(measured: Sequence[Measured], config: TuneSearchConfig, title: str) -> bytes:
    """Return recall against time as one self-contained HTML page."""
    front = _front(measured)
    points = [
        Point(each.label, _FRONT if each in front else _OTHER, each.p50_ms, each.recall, each.recall, each.recall)
        for each in measured
    ]
    chart = scatter_chart(
        "recall against time of every setting",
        points,
        "median ms a query",
        f"recall@{config.k}",
        [each.label for each in front],
    )
    figure = page.figure(
        "Recall and time",
        "Every setting; named are those that no other beats on both. Up and to the left is better.",
        chart,
        page.legend([(_FRONT, "on the front"), (_OTHER, "beaten by another")]),
    )
    rows = []
    for each in sorted(measured, key=lambda one: one.p50_ms):
        cells = (f"{each.recall:.4f}", f"{each.p50_ms:.3f}", f"{each.p99_ms:.3f}")
        rows.append(page.row(each.label, [page.cell(text) for text in cells]))
    body = page.section(title, figure, page.table(["setting", "recall", "p50 ms", "p99 ms"], rows))
    return page.page(f"{title} · raydistill", body).encode()


def _front(measured: Sequence[Measured]) -> list[Measured]:
    places = pareto_front([each.p50_ms for each in measured], [each.recall for each in measured])
    return [measured[place] for place in places]
