"""What the trials of a study gave: one outcome a trial, as values and as a table (JSON, CSV, Parquet). Pure.

How a study is run is in `study`, how it is shown in `report`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from raydistill.config.tuning import TuneConfig
from raydistill.evaluation.summary import Metrics, systems_with_role
from raydistill.tuning.front import pareto_front
from raydistill.tuning.trials import Trial

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Outcome:
    """What one trial gave.

    Attributes:
        trial: the trial.
        student: the measured student as `evaluation.summary` describes a system; None where the trial failed.
        queries: turns it was measured on; 0 where it failed.
        training_seconds: wall time of its training, waiting for resources and the start of workers included.
        evaluation: fingerprint of the evaluation; "" where it failed.
        failure: why it has no result, a sentence; None where it has one.
    """

    trial: Trial
    student: Mapping[str, Any] | None
    queries: int = 0
    training_seconds: float = 0.0
    evaluation: str = ""
    failure: str | None = None

    @staticmethod
    def of(trial: Trial, metrics: Metrics, training_seconds: float, evaluation: str) -> Outcome:
        """Return the outcome of a measured trial."""
        return Outcome(trial, systems_with_role(metrics, "student")[0], metrics["queries"], training_seconds, evaluation)

    def cost(self, kind: str) -> float:
        """Return the mean FLOPS ("flops") or active terms ("l0") of a query."""
        assert self.student is not None
        return float(self.student[{"flops": "flops", "l0": "terms"}[kind]]["mean"])

    def mean(self, measure: str) -> float:
        """Return the mean of a measure."""
        assert self.student is not None
        return float(self.student["measures"][measure]["mean"])


def measured(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes of the trials that did not fail, in order."""
    return [outcome for outcome in outcomes if outcome.student is not None]


def on_front(tune: TuneConfig, outcomes: Sequence[Outcome], measure: str = "") -> list[Outcome]:
    """Return the outcomes that no other beats on both cost and a measure (default: the first), by ascending cost."""
    found = measured(outcomes)
    front = pareto_front(
        [each.cost(tune.cost) for each in found], [each.mean(measure or tune.measures[0]) for each in found]
    )
    return [found[place] for place in front]


def best(tune: TuneConfig, outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return the outcome with the highest first measure, the cheapest of equals; None when all trials failed."""
    found = measured(outcomes)
    return max(found, key=lambda each: (each.mean(tune.measures[0]), -each.cost(tune.cost)), default=None)


def table(tune: TuneConfig, outcomes: Sequence[Outcome]) -> pa.Table:
    """Return one row a trial.

    Columns: label, id, lines (JSON), changes (JSON), on_front, then for each measure M, and for flops and l0: M, M low,
    M high (95 % bootstrap interval); l0 by depth (JSON: depth label -> mean); queries, training_seconds, evaluation
    (fingerprint of the artifact), failure.
    Numbers of failed trials are null.
    """
    front = {each.trial.identity for each in on_front(tune, outcomes)}
    rows = [_row(tune, outcome, outcome.trial.identity in front) for outcome in outcomes]
    return pa.table({name: [row[name] for row in rows] for name in rows[0]})


def _row(tune: TuneConfig, outcome: Outcome, in_front: bool) -> dict[str, Any]:
    trial, student = outcome.trial, outcome.student
    row: dict[str, Any] = {
        "label": trial.label,
        "id": trial.identity,
        "lines": json.dumps(dict(trial.lines)),
        "changes": json.dumps(dict(trial.changes), default=str),
        "on_front": in_front,
    }
    intervals = {name: student["measures"][name] if student else None for name in tune.measures}
    intervals |= {"flops": student["flops"] if student else None, "l0": student["terms"] if student else None}
    for name, interval in intervals.items():
        for column, key in ((name, "mean"), (f"{name} low", "low"), (f"{name} high", "high")):
            row[column] = None if interval is None else float(interval[key])
    by_depth = {at["label"]: at["terms"]["mean"] for at in student["by_depth"]} if student else {}
    return {
        **row,
        "l0 by depth": json.dumps(by_depth),
        "queries": outcome.queries,
        "training_seconds": outcome.training_seconds,
        "evaluation": outcome.evaluation,
        "failure": outcome.failure,
    }


def parquet_bytes(rows: pa.Table) -> bytes:
    """Return the table as Parquet."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd")
    return buffer.getvalue()


def csv_bytes(rows: pa.Table) -> bytes:
    """Return the table as CSV with a header."""
    buffer = io.BytesIO()
    pa_csv.write_csv(rows, buffer)
    return buffer.getvalue()


def json_bytes(tune: TuneConfig, outcomes: Sequence[Outcome]) -> bytes:
    """Return everything as JSON: {format, study, trials: [rows of `table` with their structures], best}."""
    rows = table(tune, outcomes).to_pylist()
    structured = [{**row, **{name: json.loads(row[name]) for name in ("lines", "changes", "l0 by depth")}} for row in rows]
    found = best(tune, outcomes)
    content = {
        "format": FORMAT_VERSION,
        "study": tune.model_dump(mode="json"),
        "trials": structured,
        "best": found.trial.identity if found else None,
    }
    return json.dumps(content, indent=1, ensure_ascii=False).encode()
