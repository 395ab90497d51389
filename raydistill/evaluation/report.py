"""The report of a run: one self-contained HTML page, the same numbers as JSON, and a table for the terminal.

Pure: from the metrics of an evaluation (`summary`), training records and stage timings to text. Sections are in
`report_results`, `report_teachers` and `training_curves`, looks in `page`, charts in `plots`. The page holds no script and
refers to nothing outside itself; every text from data is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

from rich.table import Table

from raydistill.config import DistillConfig, RecordedTeacherConfig
from raydistill.evaluation import page
from raydistill.evaluation.plots import Bar, bar_chart, number_text
from raydistill.evaluation.report_results import (
    comparison_section,
    effectiveness_section,
    judged_text,
    p_text_against,
    range_text,
    results_section,
    signed_text,
)
from raydistill.evaluation.report_slices import slices_section
from raydistill.evaluation.report_teachers import ablation_section, example_section, teacher_section
from raydistill.evaluation.summary import Metrics, best_system, best_values, ordered_systems, systems_with_role
from raydistill.evaluation.training_curves import training_figures, validation_figures


@dataclass(frozen=True)
class Report:
    """A finished report: an HTML page and the same content for programs, both complete file contents."""

    html: str
    json: str


def build_report(
    config: DistillConfig,
    metrics: Metrics,
    training: Sequence[Mapping[str, float]] = (),
    stages: Sequence[Mapping[str, Any]] = (),
    validation: Sequence[Mapping[str, float]] = (),
    created: datetime | None = None,
    teaching: Sequence[Mapping[str, Any]] = (),
    scoring: Sequence[Mapping[str, Any]] = (),
    ablation: Mapping[str, Any] | None = None,
) -> Report:
    """Return the report of a run.

    Args:
        config: the run's resolved configuration.
        metrics: see `summary`; `evaluate.load_metrics` reads them from an evaluation.
        training: records {"step": ..., "loss": ..., ...} in any order; empty leaves the curves out.
        stages: {"stage": name, "seconds": wall time, "skipped": bool} in order, a skipped stage with the time
            it took when it ran; empty leaves the timings out.
        validation: records {"step": ..., "nDCG@10": ..., "l0": ..., "flops": ...} of the validations on the way.
        created: time shown; now when None.
        teaching: what the teachers did, see `teaching.teaching_counts`; empty leaves it out.
        scoring: {"round": number, ...} and what a scorer did, see `scoring.stage.scoring_counts`; empty leaves it out.
        ablation: the content of `comparison_json` for the teachers of the test turns; None leaves it out.
    """
    moment = (created or datetime.now(UTC)).astimezone(UTC).isoformat(sep=" ", timespec="minutes")
    body = "\n".join(
        block
        for block in (
            _header(config, metrics, moment),
            results_section(metrics),
            comparison_section(metrics),
            effectiveness_section(metrics),
            slices_section(metrics),
            page.section(
                "Training",
                page.grid(training_figures(training, config.train.objective.part_names), small=True),
                text=_advice(training),
            ),
            page.section("Validation", page.grid(validation_figures(validation), small=True)),
            teacher_section(metrics, teaching, scoring),
            ablation_section(ablation),
            example_section(metrics),
            _stage_section(stages),
            _footer(config, metrics),
        )
        if block
    )
    content = {
        "run": config.run,
        "created": moment,
        "config": config.model_dump(mode="json"),
        "evaluation": metrics,
        "training": [dict(record) for record in training],
        "validation": [dict(record) for record in validation],
        "stages": [dict(stage) for stage in stages],
        "teaching": [dict(row) for row in teaching],
        "scoring": [dict(row) for row in scoring],
        "ablation": ablation,
    }
    return Report(page.page(f"{config.run} · raydistill", body), json.dumps(content, indent=1, ensure_ascii=False))


def _advice(training: Sequence[Mapping[str, Any]]) -> str:
    """Return what training said last of a collapse of sparsity, and at how many of the logged steps it said so."""
    said = [str(record["advice"]) for record in training if "advice" in record]
    return f"Sparsity collapsed at {len(said)} of {len(training)} logged steps. Of the last: {said[-1]}." if said else ""


def console_table(metrics: Metrics) -> Table:
    """Return the main table for a terminal: a row a system, best values bold."""
    measures = metrics["measures"]
    shown = Table(title=f"{metrics['queries']} judged turns", title_justify="left", header_style="bold")
    shown.add_column("system", overflow="fold")
    for name in [*measures, "FLOPS", "L0", "ms"]:
        shown.add_column(name, justify="right")
    best = best_values(metrics)
    for system in ordered_systems(metrics):
        cells = []
        for name in measures:
            value = system["measures"][name]["mean"]
            cells.append(f"[bold]{value:.3f}[/bold]" if value == best[name] else f"{value:.3f}")
        cells += [f"{system['flops']['mean']:.2f}", f"{system['terms']['mean']:.0f}", f"{system['total_ms']['p50']:.1f}"]
        # Names come from configurations: square brackets must not be read as markup.
        name = system["name"].replace("[", r"\[")
        shown.add_row(name, *cells, style="cyan" if system["role"] == "student" else None)
    return shown


def _header(config: DistillConfig, metrics: Metrics, moment: str) -> str:
    facts = [
        ("Test conversations", _short(config.data.test.conversations)),
        ("Judged turns", judged_text(metrics)),
        ("Passages", ", ".join(_short(uri) for uri in config.data.corpus)),
        ("Student", _short(config.student.model)),
        ("Documents", _documents_text(config)),
        ("Teachers", ", ".join(_teacher_text(teacher) for teacher in config.teachers)),
        ("Training", _training_text(config)),
        ("Written", f"{moment[:16]} UTC"),
    ]
    return (
        f"<header><h1>{escape(config.run)}</h1>"
        '<p class="lead">A sparse conversational retriever distilled from LLM query rewriting.</p>'
        f"{_headline_cards(metrics)}{page.facts(facts)}</header>"
    )


def _headline_cards(metrics: Metrics) -> str:
    student = systems_with_role(metrics, "student")
    if not student:
        return ""
    system, measure = student[0], metrics["measures"][0]
    interval = system["measures"][measure]
    cards = [page.card(f"{measure}, student", f"{interval['mean']:.3f}", f"95 % interval {range_text(interval)}")]
    teacher = best_system(metrics, "teacher")
    baseline = best_system(metrics, "baseline")
    for label, other in (("best teacher", teacher), ("best baseline", baseline)):
        if other is not None:
            gap = interval["mean"] - other["measures"][measure]["mean"]
            cards.append(
                page.card(
                    f"against the {label}",
                    signed_text(gap),
                    f"{other['name']}, {p_text_against(metrics, other, measure)}",
                )
            )
    cards.append(
        page.card("FLOPS, student", f"{system['flops']['mean']:.2f}", f"{system['terms']['mean']:.0f} active terms a query")
    )
    cards.append(
        page.card(
            "latency, student",
            f"{system['total_ms']['p50']:.1f} ms",
            f"median; p99 {system['total_ms']['p99']:.1f} ms",
        )
    )
    return f'<div class="cards">{"".join(cards)}</div>'


def _stage_section(stages: Sequence[Mapping[str, Any]]) -> str:
    if not stages:
        return ""
    bars = [
        Bar(
            str(stage["stage"]),
            float(stage["seconds"]),
            _duration_text(float(stage["seconds"])) + (", already done" if stage.get("skipped") else ""),
            colour=0,
            faint=bool(stage.get("skipped")),
        )
        for stage in stages
    ]
    total = sum(float(stage["seconds"]) for stage in stages)
    chart = page.figure(
        "Wall time of the stages",
        f"Together {_duration_text(total)}. Pale: done by an earlier submission of the job.",
        bar_chart("Wall time by stage", bars),
    )
    return page.section("Stages", page.grid([chart]))


def _footer(config: DistillConfig, metrics: Metrics) -> str:
    resolved = json.dumps(config.model_dump(mode="json", exclude={"ray"}), indent=2, ensure_ascii=False)
    return (
        f"<footer><details><summary>Resolved configuration</summary><pre><code>{escape(resolved)}</code></pre></details>"
        f"<p>Measures by ir_measures over every judged turn; {metrics['depth']} passages retrieved a turn; latency of one "
        f"query at a time, encoding and search; bootstrap seed {metrics['seed']}.</p></footer>"
    )


def _short(uri: str) -> str:
    """Return the last two components of a path or URI: enough to recognise it, no account or machine name."""
    return "/".join(uri.rstrip("/").split("/")[-2:])


def _documents_text(config: DistillConfig) -> str:
    documents = config.index.documents
    if documents.kind == "lexical":
        return f"BM25 impacts (k1 {documents.k1:g}, b {documents.b:g}) over the student's vocabulary"
    kind = "learned from recorded runs, started at" if documents.kind == "learned" else "SPLADE,"
    return f"{kind} {_short(documents.model)}"


def _teacher_text(teacher: Any) -> str:
    source = "recorded" if isinstance(teacher, RecordedTeacherConfig) else _short(teacher.model)
    return f"{teacher.name} ({source})"


def _training_text(config: DistillConfig) -> str:
    train = config.train
    regularisation = train.regularisation
    sparsity = [str(regularisation.terms)] if regularisation.terms.terms else []
    sparsity += [f"target {regularisation.target}"] if regularisation.target is not None else []
    return (
        f"{train.objective}; {', '.join(sparsity) or 'no regularisation'}; {train.epochs:g} epochs, batch "
        f"{train.global_batch}, {train.sampling.passages} passages a query ({train.sampling.policy}), learning rate "
        f"{train.learning_rate:g}"
    )


def _duration_text(seconds: float) -> str:
    if seconds < 60:
        return f"{number_text(round(seconds, 1))} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
