"""A study on Ray Tune over a small world: trials train through Ray Train inside Tune, failures stay with their trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydistill.demo.run import CONFIG
from raydistill.tuning.study import run_study
from raydistill.tuning.trials import Study, load_study
from tests.small_world import small_world

pytestmark = pytest.mark.slow


def study_of(folder: Path, lines: dict[str, Any]) -> Study:
    (folder / "world").mkdir(exist_ok=True)
    data = small_world(folder / "world")
    turns = [turn for line in (data / "conversations.jsonl").open() for turn in json.loads(line)["turns"]]
    rewrites = "".join(json.dumps({"_id": turn["query_id"], "text": turn["user"]}) + "\n" for turn in turns)
    (folder / "rewrites.jsonl").write_text(rewrites)
    tree = {
        "base": str(CONFIG),
        "changes": {
            "teachers": [{"engine": "recorded", "name": "questions", "rewrites": str(folder / "rewrites.jsonl")}],
            "data.validation": {"share": 0.2},
            "train.epochs": 0.2,
            "evaluate.bootstrap_samples": 50,
        },
        "tune": {"name": "study", "max_concurrent": 2, "lines": lines},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(tree))
    return load_study(folder / "study.yaml", [f"vars.data={data}", f"vars.root={folder / 'root'}", "vars.run=small"])


def stored(study: Study) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(study.base.root) / "runs" / "study" / "study.json").read_text())
    return {trial["label"]: trial for trial in content["trials"]}


def test_a_failed_trial_is_recorded_and_a_larger_study_keeps_what_is_done(ray_cluster: None, tmp_path: Path) -> None:
    study = study_of(tmp_path, {"rate": {"train.learning_rate": [1e30]}})
    run_study(study)
    found = stored(study)
    assert found["base"]["failure"] is None
    assert 0.0 <= found["base"]["nDCG@10 low"] <= found["base"]["nDCG@10"] <= found["base"]["nDCG@10 high"]
    assert found["base"]["flops"] > 0
    assert found["learning_rate 1e+30"]["failure"]
    root = Path(study.base.root)
    evaluations = {path: path.stat().st_mtime_ns for path in root.glob("artifacts/evaluation/*/_manifest.json")}
    assert len(evaluations) == 1

    larger = study_of(tmp_path, {"samples": [{"label": "2", "train.sampling.passages": 3, "train.sampling.top": 0}]})
    run_study(larger)
    again = stored(larger)
    assert again["base"] == found["base"]
    assert again["samples: 2"]["failure"] is None
    after = {path: path.stat().st_mtime_ns for path in root.glob("artifacts/evaluation/*/_manifest.json")}
    assert len(after) == 2
    assert evaluations.items() <= after.items()
