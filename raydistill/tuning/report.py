"""The report of a study: one self-contained HTML page, and a table for the terminal. Charts and looks are evaluation's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.table import Table

from raydistill.config.tuning import TuneConfig
from raydistill.evaluation import page
from raydistill.evaluation.plots import Point, Series, line_chart, scatter_chart
from raydistill.evaluation.report_results import range_text
from raydistill.tuning.outcomes import Outcome, best, measured, on_front
from raydistill.tuning.trials import point_label

_COSTS = {"flops": "FLOPS", "l0": "active terms (L0)"}
_FRONT, _OTHER = 0, 4


def study_page(tune: TuneConfig, outcomes: Sequence[Outcome]) -> str:
    """Return the HTML page of a study."""
    body = "\n".join(
        block
        for block in (
            _header(tune, outcomes),
            _front_section(tune, outcomes),
            *(_line_section(tune, name, outcomes) for name in tune.lines),
            _table_section(tune, outcomes),
            _failure_section(outcomes),
            _footer(tune),
        )
        if block
    )
    return page.page(f"{tune.name} · raydistill", body)


def console_table(tune: TuneConfig, outcomes: Sequence[Outcome]) -> Table:
    """Return the trials as a table for a terminal: those of the front starred, the best one bold, failures with reasons."""
    front = {each.trial.identity for each in on_front(tune, outcomes)}
    chosen = best(tune, outcomes)
    shown = Table(title=f"{tune.name}: measured on {tune.measured_on} turns", title_justify="left", header_style="bold")
    shown.add_column("trial", overflow="fold")
    for name in [*tune.measures, "FLOPS", "L0", "train s"]:
        shown.add_column(name, justify="right")
    shown.add_column("front", justify="center")
    for outcome in outcomes:
        label = outcome.trial.label.replace("[", r"\[")
        if outcome.student is None:
            shown.add_row(f"{label}\n[red]failed: {str(outcome.failure).replace('[', chr(92) + '[')}[/red]")
            continue
        cells = [f"{outcome.mean(name):.3f}" for name in tune.measures]
        cells += [f"{outcome.cost('flops'):.2f}", f"{outcome.cost('l0'):.1f}", f"{outcome.training_seconds:.0f}"]
        star = "*" if outcome.trial.identity in front else ""
        shown.add_row(label, *cells, star, style="bold" if outcome is chosen else None)
    return shown


def _header(tune: TuneConfig, outcomes: Sequence[Outcome]) -> str:
    found = measured(outcomes)
    chosen = best(tune, outcomes)
    cards = []
    if chosen is not None:
        measure = tune.measures[0]
        cards = [
            page.card(f"highest {measure}", f"{chosen.mean(measure):.3f}", chosen.trial.label),
            page.card("its FLOPS", f"{chosen.cost('flops'):.2f}", f"{chosen.cost('l0'):.0f} active terms a query"),
            page.card("trials", str(len(found)), f"{len(outcomes) - len(found)} failed"),
        ]
    facts = [
        ("Measured on", f"{tune.measured_on} turns" + (f", {found[0].queries} judged" if found else "")),
        ("Training", f"{sum(each.training_seconds for each in found) / 60:.0f} minutes together" if found else ""),
        ("Lines", ", ".join(tune.lines)),
        ("Space", ", ".join(tune.space)),
    ]
    lead = "One configuration changed in many ways: what each change costs and what it gives."
    shown = f'<div class="cards">{"".join(cards)}</div>' if cards else ""
    return f'<header><h1>{escape(tune.name)}</h1><p class="lead">{lead}</p>{shown}{page.facts(facts)}</header>'


def _front_section(tune: TuneConfig, outcomes: Sequence[Outcome]) -> str:
    found = measured(outcomes)
    if not found:
        return ""
    charts = []
    for measure in tune.measures:
        front = on_front(tune, outcomes, measure)
        points = [
            Point(
                each.trial.label,
                _FRONT if each in front else _OTHER,
                each.cost(tune.cost),
                each.mean(measure),
                each.student["measures"][measure]["low"] if each.student else 0.0,
                each.student["measures"][measure]["high"] if each.student else 0.0,
            )
            for each in found
        ]
        joined = [each.trial.label for each in front]
        title = f"{measure} against {_COSTS[tune.cost]}"
        charts.append(
            page.figure(
                title,
                f"Every trial; named are those that no other beats on both {measure} and {_COSTS[tune.cost]}. "
                "Up and to the left is better. Whiskers are 95 % intervals.",
                scatter_chart(f"{title} of every trial", points, _COSTS[tune.cost], measure, joined),
                page.legend([(_FRONT, "on the front"), (_OTHER, "beaten by another")]),
            )
        )
    return page.section("Effectiveness and cost", page.grid(charts))


def _line_section(tune: TuneConfig, name: str, outcomes: Sequence[Outcome]) -> str:
    """Return the charts of one line: measures, FLOPS, and L0 by depth over its points."""
    points = [
        (outcome.trial.lines[name], outcome) for outcome in outcomes if name in outcome.trial.lines and outcome.student
    ]
    order = [point_label(point) for point in tune.lines[name]]
    points.sort(key=lambda each: order.index(each[0]))
    if not points:
        return ""
    ticks = [(float(place), label, "") for place, (label, _) in enumerate(points)]
    found = [outcome for _, outcome in points]
    blocks = [_line_figure(name, measure, [_interval(each, measure) for each in found], ticks) for measure in tune.measures]
    blocks.append(_line_figure(name, "FLOPS", [each.student["flops"] for each in found if each.student], ticks))
    blocks.append(_depth_figure(points))
    return page.section(name[:1].upper() + name[1:], page.grid(blocks))


def _interval(outcome: Outcome, measure: str) -> Mapping[str, float]:
    assert outcome.student is not None
    interval: Mapping[str, float] = outcome.student["measures"][measure]
    return interval


def _line_figure(
    line: str, what: str, intervals: Sequence[Mapping[str, float]], ticks: Sequence[tuple[float, str, str]]
) -> str:
    values = [[each[bound] for each in intervals] for bound in ("mean", "low", "high")]
    series = Series(what, 0, [tick[0] for tick in ticks], *values)
    title = f"{what} by {line}"
    return page.figure(title, "Band: 95 % interval.", line_chart(title, [series], line, what, ticks, zero=False))


def _depth_figure(points: Sequence[tuple[str, Outcome]]) -> str:
    series = []
    labels: list[str] = []
    for number, (label, outcome) in enumerate(points):
        bins: Sequence[Mapping[str, Any]] = outcome.student["by_depth"] if outcome.student else []
        labels = [at["label"] for at in bins]
        places = [float(place) for place in range(len(bins))]
        series.append(Series(label, number % 6, places, [at["terms"]["mean"] for at in bins]))
    title = "Active query terms (L0) by turn depth"
    ticks = [(float(place), label, "") for place, label in enumerate(labels)]
    return page.figure(
        title, "Long conversations should not make long queries.", line_chart(title, series, "turn depth", "terms", ticks)
    )


def _table_section(tune: TuneConfig, outcomes: Sequence[Outcome]) -> str:
    found = measured(outcomes)
    if not found:
        return ""
    front = on_front(tune, outcomes)
    chosen = best(tune, outcomes)
    top = {name: max(each.mean(name) for each in found) for name in tune.measures}
    rows = []
    for each in found:
        assert each.student is not None
        cells = []
        for name in tune.measures:
            interval = each.student["measures"][name]
            style = "best" if interval["mean"] == top[name] else ""
            cells.append(page.cell(f"{interval['mean']:.3f}", range_text(interval), style))
        cells.append(page.cell(f"{each.cost('flops'):.2f}", range_text(each.student["flops"], 2)))
        cells.append(page.cell(f"{each.cost('l0'):.1f}", range_text(each.student["terms"], 1)))
        cells.append(page.cell(f"{each.training_seconds:.0f}"))
        cells.append(page.cell("on it" if each in front else ""))
        changes = ", ".join(f"{field}={value}" for field, value in each.trial.changes.items())
        cells.append(page.cell(changes, style="left"))
        rows.append(page.row(each.trial.label, cells, "student" if each is chosen else ""))
    head = ["Trial", *tune.measures, "FLOPS", "L0", "Training s", "Front", "Changes"]
    text = (
        "Means with 95 % bootstrap intervals over turns below; highest means bold. The marked trial has the highest "
        f"{tune.measures[0]}. Intervals of trials overlap widely where turns are few: do not read small differences as real."
    )
    return page.section("Trials", page.table(head, rows), text=text)


def _failure_section(outcomes: Sequence[Outcome]) -> str:
    failed = [outcome for outcome in outcomes if outcome.student is None]
    if not failed:
        return ""
    rows = [page.row(each.trial.label, [page.cell(str(each.failure), style="left")]) for each in failed]
    return page.section(
        "Failed trials", page.table(["Trial", "Reason"], rows), text="They run again with the next submission."
    )


def _footer(tune: TuneConfig) -> str:
    settings = json.dumps(tune.model_dump(mode="json"), indent=2, ensure_ascii=False)
    return f"<footer><details><summary>Study</summary><pre><code>{escape(settings)}</code></pre></details></footer>"
