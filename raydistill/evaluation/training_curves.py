"""Training records as figures: losses, sparsity, regularisers, schedule. Records come from `raydistill.distill`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from raydistill.evaluation import page
from raydistill.evaluation.plots import SMALL, Series, line_chart

_MOST_POINTS = 160

# Title, what it shows, unit of the axis, fields drawn together.
_FIGURES = (
    ("Loss", "What is minimised, and its parts.", "loss", ("loss", "kld", "nce")),
    ("Active query terms (L0)", "Of the student, over the training batches.", "active terms", ("l0",)),
    ("FLOPS regulariser", "Sum over terms of the squared mean activation.", "FLOPS(Q)", ("flops",)),
    ("L1 regulariser", "Mean sum of a query's weights.", "L1(Q)", ("l1",)),
    ("Regulariser weights", "Lambda as it grows over the ramp.", "lambda", ("flops_lambda", "l1_lambda")),
    ("Teacher entropy", "Of the teachers' distribution over a query's passages.", "nats", ("teacher_entropy",)),
    ("Learning rate", "Warm-up, then linear decay.", "learning rate", ("learning_rate",)),
    ("Gradient norm", "Before clipping.", "norm", ("gradient_norm",)),
)


def training_figures(records: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the figures whose fields the records hold at two steps or more, as HTML.

    Of two records of the same step (a resumed run) the later one counts. Values that are not finite are left out.
    """
    by_step = {int(record["step"]): record for record in records}
    figures = []
    for title, caption, unit, fields in _FIGURES:
        series = [
            found for colour, field in enumerate(fields) if (found := _series(by_step, field, colour)) and any(found.y)
        ]
        if series:
            chart = line_chart(
                f"{title} by training step", series, "optimizer step", unit, zero=title != "Loss", markers=False, width=SMALL
            )
            figures.append(page.figure(title, caption, chart))
    return figures


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
