"""A study's outcomes as a table and as a page: what is marked, what failed, and what is left out of neither."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from raydistill.config.tuning import TuneConfig
from raydistill.tuning.outcomes import Outcome, best, csv_bytes, json_bytes, on_front, parquet_bytes, table
from raydistill.tuning.report import console_table, study_page
from raydistill.tuning.trials import plan_study
from tests.tuning.test_trials import BASE

TUNE = TuneConfig.model_validate(
    {
        "name": "s",
        "lines": {
            "rate": [{"label": "low <b>", "train.learning_rate": 1e-5}, {"label": "high", "train.learning_rate": 1e-2}],
            "epochs": {"train.epochs": [1, 2]},
        },
    }
)


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05}


def metrics(ndcg: float, flops: float) -> dict[str, Any]:
    by_depth = [{"label": label, "terms": interval(10 * flops + depth)} for depth, label in enumerate(("1", "2-3", "4+"))]
    student = {
        "name": "student",
        "role": "student",
        "measures": {"nDCG@10": interval(ndcg), "R@100": interval(ndcg + 0.4)},
        "flops": interval(flops),
        "terms": interval(10 * flops),
        "by_depth": by_depth,
    }
    return {"queries": 40, "systems": [{"name": "last turn", "role": "baseline"}, student]}


@pytest.fixture
def outcomes() -> list[Outcome]:
    trials = plan_study(TUNE, BASE, (), Path("/"), "study.yaml").trials
    assert [trial.label for trial in trials] == ["base", "rate: low <b>", "rate: high", "epochs 1", "epochs 2"]
    found = [(0.30, 2.0), (0.28, 1.0), None, (0.29, 2.5), (0.33, 3.0)]
    return [
        Outcome(trial, None, failure="the loss is nan at step 3; lower train.learning_rate")
        if each is None
        else Outcome.of(trial, metrics(*each), 12.5, "e" * 64)
        for trial, each in zip(trials, found, strict=True)
    ]


def test_the_front_and_the_best_leave_out_beaten_and_failed_trials(outcomes: list[Outcome]) -> None:
    assert [each.trial.label for each in on_front(TUNE, outcomes)] == ["rate: low <b>", "base", "epochs 2"]
    chosen = best(TUNE, outcomes)
    assert chosen is not None
    assert chosen.trial.label == "epochs 2"
    assert best(TUNE, [outcomes[2]]) is None


def test_the_three_forms_of_the_table_hold_the_same_numbers(outcomes: list[Outcome]) -> None:
    rows = table(TUNE, outcomes)
    assert pq.read_table(io.BytesIO(parquet_bytes(rows))).equals(rows)
    lines = list(csv.DictReader(io.StringIO(csv_bytes(rows).decode())))
    stored = json.loads(json_bytes(TUNE, outcomes))
    assert [float(line["nDCG@10"]) for line in lines if not line["failure"]] == [0.30, 0.28, 0.29, 0.33]
    assert [trial["nDCG@10"] for trial in stored["trials"]] == [0.30, 0.28, None, 0.29, 0.33]
    assert [trial["on_front"] for trial in stored["trials"]] == [True, True, False, False, True]
    assert stored["trials"][2]["failure"].startswith("the loss is nan")
    assert stored["trials"][4]["changes"] == {"train.epochs": 2}
    assert stored["trials"][0]["l0 by depth"] == {"1": 20.0, "2-3": 21.0, "4+": 22.0}
    assert stored["best"] == outcomes[4].trial.identity
    assert rows.schema.field("nDCG@10 low").type == pa.float64()


def test_the_page_shows_every_trial_names_the_front_in_the_chart_and_escapes_labels(outcomes: list[Outcome]) -> None:
    page = study_page(TUNE, outcomes)
    assert "low <b>" not in page
    assert "the loss is nan at step 3" in page
    for heading in ("Effectiveness and cost", "Rate", "Epochs", "Trials", "Failed trials"):
        assert f"<h2>{heading}</h2>" in page
    chart = page[page.index("nDCG@10 against FLOPS of every trial") : page.index("beaten by another")]
    named = {label for label in ("rate: low &lt;b&gt;", "base", "epochs 1", "epochs 2") if f">{label}</text>" in chart}
    assert named == {"rate: low &lt;b&gt;", "base", "epochs 2"}
    assert "<script" not in page
    assert "://" not in page


def test_a_page_and_a_table_of_failures_alone(outcomes: list[Outcome]) -> None:
    assert "Failed trials" in study_page(TUNE, [outcomes[2]])
    console = Console(width=120, file=io.StringIO())
    console.print(console_table(TUNE, outcomes))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "failed: the loss is nan" in shown
    assert [line.count("*") for line in shown.splitlines() if "epochs 2" in line] == [1]
