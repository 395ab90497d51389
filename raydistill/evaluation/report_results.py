"""The report's sections on results: the main table, the student against each system, effectiveness and cost as charts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from raydistill.evaluation import page
from raydistill.evaluation.plots import Point, Series, line_chart, scatter_chart
from raydistill.evaluation.summary import Metrics, best_system, best_values, ordered_systems, systems_with_role

GROUPS = (
    ("baseline", "Without rewriting"),
    ("teacher", "Teachers (LLM rewrites)"),
    ("student", "Student (conversation only)"),
    ("reranked", "Student, its first passages in the order of a cross-encoder"),
)
_ROLE_COLOURS = {"student": 0, "teacher": 1, "baseline": 2, "reranked": 3}
_SIGNIFICANT = 0.05

ValueAt = Callable[[Mapping[str, Any]], Mapping[str, float]]


def results_section(metrics: Metrics) -> str:
    """Return the main table: systems by measures with intervals, and what each costs."""
    measures = metrics["measures"]
    best = best_values(metrics)
    head = ["System", *measures, "Judged@10", "FLOPS", "L0", "Postings", "Encode ms", "Search ms"]
    rows = []
    for role, label in GROUPS:
        systems = systems_with_role(metrics, role)
        if systems:
            rows.append(page.group_row(label, len(head)))
        rows += [_system_row(system, measures, best) for system in systems]
    missing = [f"{system['name']}: {len(system['missing'])}" for system in metrics["systems"] if system["missing"]]
    note = f"Turns for which nothing was retrieved, counted as 0: {'; '.join(missing)}." if missing else ""
    text = (
        f"All systems search the same index. Means over {judged_text(metrics)}, with 95 % bootstrap intervals over turns "
        f"({metrics['samples']} resamples) below; best mean bold. Judged@10: share of the top 10 that annotators judged. "
        "FLOPS: expected terms shared with a random passage. L0: active terms a query. Postings: entries that "
        "a search reads. Latency: p50, with p99 below."
    )
    return page.section("Results", page.table(head, rows), f'<p class="soft">{escape(note)}</p>' if note else "", text=text)


def _system_row(system: Mapping[str, Any], measures: Sequence[str], best: Mapping[str, float]) -> str:
    cells = []
    for name in measures:
        interval = system["measures"][name]
        cells.append(
            page.cell(f"{interval['mean']:.3f}", range_text(interval), "best" if interval["mean"] == best[name] else "")
        )
    cells.append(page.cell(f"{system['judged']:.0%}"))
    cells.append(page.cell(f"{system['flops']['mean']:.2f}", range_text(system["flops"], 2)))
    cells.append(page.cell(f"{system['terms']['mean']:.1f}", range_text(system["terms"], 1)))
    postings = system["postings"]
    cells.append(page.cell(f"{postings['mean']:,.0f}" if postings else "–"))
    for name in ("encode_ms", "search_ms"):
        cells.append(page.cell(f"{system[name]['p50']:.1f}", f"{system[name]['p99']:.1f}"))
    return page.row(system["name"], cells, "student" if system["role"] == "student" else "")


def comparison_section(metrics: Metrics) -> str:
    """Return the table of paired differences, or nothing when there is no student."""
    found = {(each["system"], each["measure"]): each for each in metrics["comparisons"]}
    if not found:
        return ""
    measures = metrics["measures"]
    rows = []
    for system in ordered_systems(metrics):
        if system["role"] != "student":
            rows.append(page.row(system["name"], [_comparison_cell(found[(system["name"], name)]) for name in measures]))
    text = (
        "Student minus system on the same turns: mean difference, its 95 % bootstrap interval, and p of a paired "
        "randomisation test, corrected over the systems of a column (Holm). Coloured and starred where p is below .05."
    )
    return page.section("The student against each system", page.table(["System", *measures], rows), text=text)


def _comparison_cell(each: Mapping[str, Any]) -> str:
    difference, p_value = each["difference"], each["p_holm"]
    style = ""
    if p_value < _SIGNIFICANT:
        style = "good" if difference["mean"] > 0 else "bad"
    star = "*" if style else ""
    return page.cell(f"{signed_text(difference['mean'])}{star}", f"{range_text(difference)}, {p_value_text(p_value)}", style)


def effectiveness_section(metrics: Metrics) -> str:
    """Return the charts: effectiveness and query length by turn depth, effectiveness against FLOPS."""
    chosen = _plotted_systems(metrics)
    measure = metrics["measures"][0]
    blocks = [
        _measure_figure(chosen, measure),
        page.figure(
            f"{measure} against FLOPS",
            "Up and to the left is better: more effective and cheaper to search. The line is the front, the best at each "
            "cost. Whiskers are 95 % intervals.",
            _cost_chart(metrics, measure),
            page.legend([(_ROLE_COLOURS[role], label) for role, label in GROUPS if systems_with_role(metrics, role)]),
        ),
    ]
    recall = next((name for name in reversed(metrics["measures"][1:]) if name.startswith("R@")), None)
    if recall is not None:
        blocks.append(_measure_figure(chosen, recall))
    blocks.append(_length_figure(chosen))
    return page.section("Effectiveness and cost", page.grid(blocks))


def _measure_figure(chosen: Sequence[tuple[int, Mapping[str, Any]]], measure: str) -> str:
    title = f"{measure} by turn depth"
    return page.figure(
        title,
        f"n: turns at that depth. Band: 95 % interval of {chosen[0][1]['name']}.",
        _depth_chart(chosen, lambda at: at["measures"][measure], measure, title),
        _depth_numbers(chosen, lambda at: at["measures"][measure], 3),
    )


def _length_figure(chosen: Sequence[tuple[int, Mapping[str, Any]]]) -> str:
    # A raw conversation has ten times the terms of a query and would press all other lines onto the axis.
    limit = 4 * max(at["terms"]["mean"] for at in chosen[0][1]["by_depth"])
    drawn = [each for each in chosen if max(at["terms"]["mean"] for at in each[1]["by_depth"]) <= limit]
    left_out = [
        f"{system['name']} ({system['terms']['mean']:.0f} on average)"
        for _, system in chosen
        if system not in [each[1] for each in drawn]
    ]
    note = f" Too long to draw here: {', '.join(left_out)}." if left_out else ""
    return page.figure(
        "Active query terms (L0) by turn depth",
        f"n: turns at that depth. Long conversations should not make long queries.{note}",
        _depth_chart(drawn, lambda at: at["terms"], "active terms", "Active terms of a query by turn depth"),
        _depth_numbers(chosen, lambda at: at["terms"], 1),
    )


def _plotted_systems(metrics: Metrics) -> list[tuple[int, Mapping[str, Any]]]:
    """Return (colour, system) of the student, the best teacher, the last turn and the full conversation, where there."""
    chosen = [(0, system) for system in systems_with_role(metrics, "student")[:1]]
    teacher = best_system(metrics, "teacher")
    if teacher is not None:
        chosen.append((1, teacher))
    baselines = systems_with_role(metrics, "baseline")
    named = [system for system in baselines if system["name"] in ("last turn", "full conversation")]
    return chosen + [(2 + place, system) for place, system in enumerate((named or baselines)[:2])]


def _depth_chart(chosen: Sequence[tuple[int, Mapping[str, Any]]], value_at: ValueAt, label: str, description: str) -> str:
    series = []
    for place, (colour, system) in enumerate(chosen):
        values = [value_at(at) for at in system["by_depth"]]
        positions = [float(position) for position in range(len(values))]
        band = place == 0
        series.append(
            Series(
                system["name"],
                colour,
                positions,
                [each["mean"] for each in values],
                [each["low"] for each in values] if band else (),
                [each["high"] for each in values] if band else (),
            )
        )
    ticks = [(float(place), at["label"], f"n {at['queries']}") for place, at in enumerate(chosen[0][1]["by_depth"])]
    return line_chart(description, series, "turn depth", label, ticks)


def _depth_numbers(chosen: Sequence[tuple[int, Mapping[str, Any]]], value_at: ValueAt, digits: int) -> str:
    head = ["System", *[at["label"] for at in chosen[0][1]["by_depth"]]]
    rows = [
        page.row(system["name"], [page.cell(f"{value_at(at)['mean']:.{digits}f}") for at in system["by_depth"]])
        for _, system in chosen
    ]
    return f"<details><summary>Numbers</summary>{page.table(head, rows)}</details>"


def _cost_chart(metrics: Metrics, measure: str) -> str:
    points = [
        Point(
            system["name"],
            _ROLE_COLOURS[system["role"]],
            system["flops"]["mean"],
            system["measures"][measure]["mean"],
            system["measures"][measure]["low"],
            system["measures"][measure]["high"],
        )
        for system in metrics["systems"]
    ]
    description = f"{measure} of every system against its FLOPS"
    return scatter_chart(description, points, "FLOPS", measure, joined=_front(points))


def _front(points: Sequence[Point]) -> list[str]:
    """Return the names of the points that no cheaper or equally cheap one is above, by ascending cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.x, -each.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return [point.name for point in front]


def p_text_against(metrics: Metrics, other: Mapping[str, Any], measure: str) -> str:
    """Return the corrected p of the student against a system, as text; "" when there is no such comparison."""
    for each in metrics["comparisons"]:
        if each["system"] == other["name"] and each["measure"] == measure:
            return p_value_text(each["p_holm"])
    return ""


def p_value_text(p_value: float) -> str:
    """Return a p-value as it is printed."""
    return "p\u00a0<\u00a0.001" if p_value < 0.001 else f"p\u00a0=\u00a0{p_value:.3f}".replace("0.", ".", 1)


def signed_text(difference: float) -> str:
    """Return a difference with its sign, a true minus sign included."""
    return f"{difference:+.3f}".replace("-", "−")


def range_text(interval: Mapping[str, float], digits: int = 3) -> str:
    """Return the bounds of an interval."""
    return f"{interval['low']:.{digits}f} to {interval['high']:.{digits}f}".replace("-", "−")


def judged_text(metrics: Metrics) -> str:
    """Return how many turns are measured and how many are not."""
    rest = f" ({metrics['left_out']} turns without judgements left out)" if metrics["left_out"] else ""
    return f"{metrics['queries']} judged turns{rest}"
