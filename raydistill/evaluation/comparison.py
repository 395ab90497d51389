"""Any number of runs on the same judgements: means with intervals, each tested against a baseline; table, page and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from raydistill.config import EvaluateConfig
from raydistill.evaluation import page
from raydistill.evaluation.measures import Scores, judged_share, score_run
from raydistill.evaluation.plots import Bar, bar_chart
from raydistill.evaluation.runs import Qrels, Run
from raydistill.evaluation.significance import compare, holm, mean_interval

JUDGED_DEPTH = 10
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class ComparedRun:
    """One run.

    Attributes:
        name, kind: kind groups rows; "" for none.
        measures: name -> {mean, low, high}.
        against: name -> {difference {mean, low, high}, p_value, wins, losses, p_holm} against the baseline of that measure;
            empty for the baseline itself.
        judged: share of its top 10 that has a judgement.
        missing: judged queries that it retrieves nothing for; they count 0.
    """

    name: str
    kind: str
    measures: Mapping[str, Mapping[str, float]]
    against: Mapping[str, Mapping[str, Any]]
    judged: float
    missing: tuple[str, ...]


@dataclass(frozen=True)
class ComparedRuns:
    """All of them: `queries` were judged, `baseline` is the run that the others are tested against, by measure."""

    queries: int
    measures: tuple[str, ...]
    baseline: Mapping[str, str]
    rows: tuple[ComparedRun, ...]


def compare_runs(
    runs: Sequence[Run],
    qrels: Qrels,
    config: EvaluateConfig,
    baseline: Callable[[str, Mapping[str, Scores]], str],
    kinds: Mapping[str, str] | None = None,
) -> ComparedRuns:
    """Measure runs and test each against a baseline: paired randomisation tests, Holm-corrected over the runs of a measure.

    Args:
        runs: with different names.
        qrels: query id -> passage id -> grade; all of its queries count, those that a run lacks as 0.
        config: measures, bootstrap_samples and seed count.
        baseline: (measure, scores by run) -> name of the baseline run.
        kinds: name -> kind.

    Raises ValueError for two runs of one name, DataError without a judged query.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"two runs have one name: {', '.join(names)}")
    scores = {run.name: score_run(run, qrels, config.measures) for run in runs}
    chosen = {measure: baseline(measure, scores) for measure in config.measures}
    against: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in names}
    for measure in config.measures:
        values = scores[chosen[measure]].of(measure)
        others = [name for name in names if name != chosen[measure]]
        found = [compare(scores[name].of(measure), values, config.bootstrap_samples, config.seed) for name in others]
        for name, each, p_holm in zip(others, found, holm([each.p_value for each in found]), strict=True):
            against[name][measure] = {**asdict(each), "p_holm": p_holm}
    rows = [
        ComparedRun(
            name=run.name,
            kind=(kinds or {}).get(run.name, ""),
            measures={
                measure: asdict(mean_interval(scores[run.name].of(measure), config.bootstrap_samples, config.seed))
                for measure in config.measures
            },
            against=against[run.name],
            judged=judged_share(run, qrels, JUDGED_DEPTH),
            missing=scores[run.name].missing,
        )
        for run in runs
    ]
    return ComparedRuns(len(qrels), tuple(config.measures), chosen, tuple(rows))


def comparison_json(found: ComparedRuns, origin: Mapping[str, Any]) -> bytes:
    """Return everything as readable JSON, with what it was measured on."""
    return (json.dumps({**origin, **asdict(found)}, indent=1, ensure_ascii=False) + "\n").encode()


def console_table(found: ComparedRuns, title: str) -> Table:
    """Return the means as a table for a terminal; a star marks p < .05 against the baseline after correction."""
    table = Table(title=f"{title}; * differs (p < .05, corrected for all rows)", title_justify="left", header_style="bold")
    table.add_column("run", overflow="fold")
    for measure in found.measures:
        table.add_column(measure, justify="right")
    table.add_column(f"judged@{JUDGED_DEPTH}", justify="right")
    table.add_column("missing", justify="right")
    for before, row in zip((None, *found.rows), found.rows, strict=False):
        if before is not None and before.kind != row.kind:
            table.add_section()
        cells = (_cell(row, measure) for measure in found.measures)
        table.add_row(row.name, *cells, f"{row.judged:.2f}", str(len(row.missing) or ""))
    return table


def comparison_page(found: ComparedRuns, title: str, text: str) -> bytes:
    """Return one self-contained HTML page: a chart a measure, a table with intervals; `text` says what was compared."""
    kinds = list(dict.fromkeys(row.kind for row in found.rows))
    charts = []
    for measure in found.measures:
        bars = [
            Bar(row.name, row.measures[measure]["mean"], _cell(row, measure), kinds.index(row.kind)) for row in found.rows
        ]
        charts.append(page.figure(measure, f"Tested against {found.baseline[measure]}.", bar_chart(measure, bars)))
    rows = []
    for row in found.rows:
        cells = []
        for measure in found.measures:
            value = row.measures[measure]
            cells.append(page.cell(_cell(row, measure), f"[{value['low']:.3f}, {value['high']:.3f}]"))
        rows.append(page.row(row.name, [*cells, page.cell(f"{row.judged:.2f}"), page.cell(str(len(row.missing)))]))
    explained = (
        f"{found.queries} judged queries. {text} Intervals are 95 % bootstrap intervals over queries; * marks a difference "
        "from the baseline with p < .05 (paired randomisation test, Holm-corrected over all rows). A judged query that a "
        "run lacks counts 0 and is missing."
    )
    head = ["run", *found.measures, f"judged@{JUDGED_DEPTH}", "missing"]
    blocks = [page.grid(charts), page.table(head, rows)]
    named = [kind for kind in kinds if kind]
    if len(named) > 1:
        blocks.insert(0, page.legend([(kinds.index(kind), kind) for kind in named]))
    return page.page(f"{title} · raydistill", page.section(title, *blocks, text=explained)).encode()


def _cell(row: ComparedRun, measure: str) -> str:
    star = "*" if row.against.get(measure, {}).get("p_holm", 1.0) < _SIGNIFICANT else " "
    return f"{row.measures[measure]['mean']:.3f}{star}"
