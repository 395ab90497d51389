"""The report's sections on teachers: agreement, failed rewrites, and the turns where student and teacher differ most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from raydistill.evaluation import page
from raydistill.evaluation.plots import Bar, bar_chart
from raydistill.evaluation.summary import Metrics

_SIGNIFICANT = 0.05
_KINDS = {"teacher": "Single teachers", "combination": "All together", "left out": "All but one", "bound": "A bound"}


def teacher_section(
    metrics: Metrics, teaching: Sequence[Mapping[str, Any]] = (), scoring: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return how far teachers agree, how often they failed and what they and the scorers cost; nothing without teachers."""
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
    return page.section("Teachers", page.grid(blocks), _cost_table(teaching), _scoring_table(scoring))


def _cost_table(teaching: Sequence[Mapping[str, Any]]) -> str:
    """Return what each teacher that generates was asked, for all turns together; nothing where all are recorded."""
    columns = {
        "turns": "queries",
        "from the cache": "cached",
        "asked again": "retried",
        "failed": "failed",
        "not asked: self-contained": "self_contained",
        "over budget": "over_budget",
        "prompt tokens": "prompt_tokens",
        "new tokens": "generated_tokens",
    }
    rows = []
    for teacher, own in _by_name([row for row in teaching if row["engine"] != "recorded"], "teacher").items():
        cells = _sums(own, columns.values())
        dollars = sum(row.get("estimated_dollars", 0.0) for row in own)
        rows.append(page.row(teacher, [*cells, page.cell(f"{dollars:,.2f}" if dollars else "–")]))
    if not rows:
        return ""
    caption = (
        "Training and test turns together. Tokens are those of all answers, cached ones too; the estimate is that of the "
        "budget, before anything was asked."
    )
    return page.figure("What the teachers cost", caption, page.table(["teacher", *columns, "estimated $"], rows))


def _scoring_table(scoring: Sequence[Mapping[str, Any]]) -> str:
    """Return what each scorer read, for all rounds together; nothing without scorers."""
    columns = {
        "turns": "turns",
        "passages": "passages",
        "scored": "scored",
        "without their text": "without_text",
        "prompts or texts": "prompts",
        "from the cache": "cached",
        "failed": "failed",
        "prompt tokens": "prompt_tokens",
    }
    if not scoring:
        return ""
    rows = [
        page.row(f"{name} ({own[0]['kind']})", _sums(own, columns.values()))
        for name, own in _by_name(scoring, "scorer").items()
    ]
    caption = "Training turns. Tokens are those of language models' prompts, cached ones too; each is answered by one token."
    return page.figure("What the scorers read", caption, page.table(["scorer", *columns], rows))


def _by_name(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def _sums(rows: Sequence[Mapping[str, Any]], counts: Iterable[str]) -> list[str]:
    return [page.cell(f"{sum(row.get(name, 0) for row in rows):,.0f}") for name in counts]


def ablation_section(ablation: Mapping[str, Any] | None) -> str:
    """Return what each teacher and each combination is worth on the test turns; nothing before `raydistill ablate`."""
    if ablation is None:
        return ""
    measures = ablation["measures"]
    rows = []
    for kind in dict.fromkeys(row["kind"] for row in ablation["rows"]):
        rows.append(page.group_row(_KINDS.get(kind, kind), 1 + len(measures)))
        for row in (each for each in ablation["rows"] if each["kind"] == kind):
            cells = []
            for measure in measures:
                value, against = row["measures"][measure], row["against"].get(measure, {})
                star = "*" if against.get("p_holm", 1.0) < _SIGNIFICANT else ""
                cells.append(page.cell(f"{value['mean']:.3f}{star}", f"{value['low']:.3f} to {value['high']:.3f}"))
            rows.append(page.row(row["name"], cells))
    best = ablation["baseline"]
    of_all = len(set(best.values())) == 1
    baselines = next(iter(best.values())) if of_all else ", ".join(f"{best[measure]} ({measure})" for measure in measures)
    text = (
        f"Every teacher alone, all together in several ways, and all but one, on {ablation['queries']} judged test turns. "
        f"* differs from the best single teacher, {baselines}, at p < .05, corrected for all rows."
    )
    return page.section("What each teacher is worth", page.table(["", *measures], rows), text=text)


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
