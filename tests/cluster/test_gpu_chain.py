"""The whole chain on a GPU: language models rewrite, passages and queries are encoded, a student trains there.

Needs an NVIDIA GPU that Ray sees; one is enough, and all stages take it in turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from raydistill.demo.run import CONFIG
from tests.small_world import environment, small_world

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
LAYOUTS = [("bf16", 2), ("fp16", 1), ("fp32", 0), ("bf16", 3)]


@pytest.mark.timeout(900)
def test_every_stage_runs_on_a_gpu_in_every_precision(tmp_path: Path) -> None:
    data, root = small_world(tmp_path / "data"), tmp_path / "root"
    tree: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    for teacher in tree["teachers"]:
        teacher |= {"dtype": "auto", "workers": {"actors": 1, "cpus": 1, "gpus": 0.5}}
    on_gpu = {"actors": 1, "cpus": 1, "gpus": 1}
    documents = {"kind": "splade", "model": "package:raydistill/demo/models/encoder", "precision": "bf16"}
    tree["index"] |= {"documents": documents, "passages_per_segment": 300, "workers": {**on_gpu, "gpus": 0.5, "actors": 2}}
    tree["score"]["workers"] = on_gpu
    tree["evaluate"] |= {"workers": on_gpu, "bootstrap_samples": 50}
    losses, scores = {}, {}
    for precision, zero_stage in LAYOUTS:
        tree["train"] |= {"workers": on_gpu, "precision": precision, "zero_stage": zero_stage, "epochs": 2, "log_steps": 1}
        config = tmp_path / "gpu.yaml"
        config.write_text(yaml.safe_dump(tree))
        name = f"{precision}-zero-{zero_stage}"
        command = [sys.executable, "-m", "raydistill.cli", "distill", "--config", str(config)]
        ended = subprocess.run(
            [*command, f"vars.data={data}", f"vars.root={root}", f"vars.run={name}"],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=400,
            cwd=tmp_path,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-4000:]
        report = json.loads((root / "runs" / name / "report.json").read_text())
        losses[name] = [record["loss"] for record in report["training"]]
        student = next(system for system in report["evaluation"]["systems"] if system["role"] == "student")
        scores[name] = student["measures"]["R@100"]["mean"]
        assert losses[name][-1] < losses[name][0]
    first = losses["fp32-zero-0"][0]
    for name, values in losses.items():
        assert values[0] == pytest.approx(first, rel=0.05), name
        assert scores[name] == pytest.approx(scores["fp32-zero-0"], abs=0.15), name
