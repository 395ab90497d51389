"""The report's sections on teachers: agreement, failed rewrites, and the turns where student and teacher differ most."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from raydistill.evaluation import page
from raydistill.evaluation.plots import Bar, bar_chart
from raydistill.evaluation.summary import Metrics


def teacher_section(metrics: Metrics) -> str:
    """Return how far teachers agree and how often they failed; nothing without teachers."""
    blocks = []
    agreement = metrics["teachers"]["agreement"]
    names = agreement["names"]
    if len(names) > 1:
        rows = [
            page.row(name, [_heat_cell(value, place == other) for other, value in enumerate(agreement["overlap"][place])])
            for place, name in enumerate(names)
        ]
        caption = f"Mean share of the top {agreement['depth']} passages that two teachers' rewrites both retrieve."
        blocks.append(page.figure("Agreement of teachers", caption, page.table(["", *names], rows)))
    rewrites = metrics["teachers"]["rewrites"]
    if rewrites:
        blocks.append(page.figure("Failed rewrites", _failure_caption(rewrites), _failure_chart(rewrites)))
    return page.section("Teachers", page.grid(blocks))


def _heat_cell(share: float, same: bool) -> str:
    if same:
        return page.cell("")
    return f'<td style="background:rgba(var(--heat),{share * 0.5:.2f})">{share:.2f}</td>'


def _failure_chart(rewrites: Mapping[str, Mapping[str, Any]]) -> str:
    bars = []
    for name, each in rewrites.items():
        failed = sum(each["failures"].values())
        share = failed / each["rows"] if each["rows"] else 0.0
        bars.append(Bar(name, share, f"{failed} of {each['rows']} ({share:.1%})", colour=1))
    return bar_chart("Share of failed rewrites by teacher", bars)


def _failure_caption(rewrites: Mapping[str, Mapping[str, Any]]) -> str:
    kinds: dict[str, int] = {}
    for each in rewrites.values():
        for kind, count in each["failures"].items():
            kinds[kind] = kinds.get(kind, 0) + count
    listed = ", ".join(
        f"{kind.replace('_', ' ')} {count}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1])
    )
    return f"A failed rewrite is replaced by the last utterance. By kind: {listed or 'none failed'}."


def example_section(metrics: Metrics) -> str:
    """Return the turns with the largest differences between student and best teacher, with their texts."""
    examples = metrics["examples"]
    if not examples or not (examples["best"] or examples["worst"]):
        return ""
    columns = []
    for title, turns in (("The student is ahead", examples["best"]), ("The student is behind", examples["worst"])):
        shown = "".join(_turn(turn, examples, metrics["depth"]) for turn in turns) or '<p class="soft">On no turn.</p>'
        columns.append(f"<div><h3>{title}</h3>{shown}</div>")
    text = (
        f"Turns with the largest differences in {examples['measure']} between the student and the best teacher, "
        f"{examples['teacher']}. Earlier questions grey, the turn's question bold, then the teacher's rewrite."
    )
    return page.section("Best and worst turns", f'<div class="turns">{"".join(columns)}</div>', text=text)


def _turn(turn: Mapping[str, Any], examples: Mapping[str, Any], depth: int) -> str:
    before = "".join(f'<p class="before">{escape(question)}</p>' for question in turn["history"])
    return (
        f'<article class="turn">{before}<p><strong>{escape(turn["question"])}</strong></p>'
        f'<p><span class="label">{escape(examples["teacher"])}</span>{escape(turn["rewrite"])}</p>'
        f'<p class="numbers">{escape(examples["measure"])}: student {turn["student"]:.2f}, teacher {turn["teacher"]:.2f}. '
        f"First relevant passage: {_rank_text(turn['student_rank'], depth)}, {_rank_text(turn['teacher_rank'], depth)}. "
        f"Turn {turn['depth']}, <code>{escape(turn['query_id'])}</code></p></article>"
    )


def _rank_text(rank: int | None, depth: int) -> str:
    return f"not in the top {depth}" if rank is None else f"rank {rank}"
