"""Training records as figures: losses, sparsity, regularisers, schedule. Records come from `raydistill.distill`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from raydistill.evaluation import page
from raydistill.evaluation.plots import SMALL, Series, line_chart

_MOST_POINTS = 160

# Title, what it shows, unit of the axis, fields drawn together. The loss figure also takes the objective's parts.
_LOSS = "Loss"
_FIGURES = (
    (_LOSS, "What is minimised, penalties included, and the terms of the objective, each unweighted.", "loss", ("loss",)),
    ("Active query terms (L0)", "Of the student, over the training batches.", "active terms", ("l0",)),
    ("FLOPS", "Expected number of terms that a training query shares with a passage.", "FLOPS(Q, D)", ("flops",)),
    ("Sparsity target", "What is held under the target, smoothed, and what it should be.", "statistic",
     ("sparsity_statistic", "sparsity_wanted")),
    ("Penalties", "Their weighted parts of the loss.", "part of the loss",
     ("flops_penalty", "l1_penalty", "l0flops_penalty", "guard_penalty")),
    ("Penalty weights", "Lambda, as the ramp or the target's controller moves it.", "lambda",
     ("flops_lambda", "l1_lambda", "l0flops_lambda", "guard_lambda")),
    ("Teacher entropy", "Of the teachers' distribution over a query's passages.", "nats", ("teacher_entropy",)),
    ("Learning rate", "Warm-up, then the schedule.", "learning rate", ("learning_rate",)),
    ("Gradient norm", "Before clipping.", "norm", ("gradient_norm",)),
)  # fmt: skip
_VALIDATION_COSTS = ("l0", "flops")


def training_figures(records: Sequence[Mapping[str, float]], parts: Sequence[str] = ()) -> list[str]:
    """Return the figures whose fields the records hold at two steps or more, as HTML.

    Of two records of the same step (a resumed run) the later one counts. Values that are not finite are left out.

    Args:
        records: what the training loop logged.
        parts: names of the objective's terms in the records.
    """
    figures = []
    for title, caption, unit, fields in _FIGURES:
        shown = (*fields, *parts) if title == _LOSS else fields
        figures += _figure(records, f"{title} by training step", title, caption, unit, shown, zero=title != _LOSS)
    return figures


def validation_figures(records: Sequence[Mapping[str, float]]) -> list[str]:
    """Return effectiveness and cost on the validation turns by training step, as HTML; [] for fewer than two records."""
    names = sorted({name for record in records for name in record if "@" in name or name in ("RR", "AP")})
    caption = "On the validation turns, searched in the real index."
    title = "Effectiveness while training"
    return [
        *_figure(records, title, title, caption, "mean over turns", names, zero=True),
        *(
            figure
            for name in _VALIDATION_COSTS
            for figure in _figure(
                records, f"Validation {name} by step", f"Validation {name}", caption, name, (name,), zero=True
            )
        ),
    ]


def _figure(
    records: Sequence[Mapping[str, float]],
    label: str,
    title: str,
    caption: str,
    unit: str,
    fields: Sequence[str],
    zero: bool,
) -> list[str]:
    by_step = {int(record["step"]): record for record in records}
    series = [found for colour, field in enumerate(fields) if (found := _series(by_step, field, colour)) and any(found.y)]
    if not series:
        return []
    return [
        page.figure(title, caption, line_chart(label, series, "optimizer step", unit, zero=zero, markers=False, width=SMALL))
    ]


def _series(by_step: Mapping[int, Mapping[str, float]], field: str, colour: int) -> Series | None:
    points = [(step, float(by_step[step][field])) for step in sorted(by_step) if _is_number(by_step[step].get(field))]
    if len(points) < 2:
        return None
    # Dense records are averaged over equal runs of steps: a thousand noisy vertices hide the course.
    width = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return Series(
        field.replace("_", " "),
        colour,
        [sum(step for step, _ in group) / len(group) for group in groups],
        [sum(value for _, value in group) / len(group) for group in groups],
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
