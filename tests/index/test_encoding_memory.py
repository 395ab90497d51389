"""Encoding a collection takes the memory of a segment, not of the collection: measured over time, with real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SCRIPT = CHECKOUT / "benchmarks" / "encoding_memory.py"


def run(out: Path, passages: int, segment: int) -> dict:
    """Run the measurement in a process of its own, with a Ray of its own, and return what it stored."""
    command = [sys.executable, str(SCRIPT), "--passages", str(passages), "--segment", str(segment), "--out", str(out)]
    # A busy machine starts Ray slowly.
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "RAY_raylet_start_wait_time_s": "300"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert out.is_file(), ended.stderr[-2000:]
    found = json.loads(out.read_text())
    assert ended.returncode == (0 if found["within"] else 1)
    return found


def check(found: dict, passages: int) -> None:
    encoding, peaks, bounds = found["encoding"], found["peaks"], found["bounds"]
    assert encoding["passages"] == passages
    assert encoding["truncated"] == encoding["malformed"] == encoding["without_terms"] == 0
    for kind in ("driver", "actor"):
        assert 0 < peaks[kind] <= bounds[kind], kind
        # The series is of this run and shows the peak.
        assert max(size for _, size in found["over_time"][kind]) == round(peaks[kind] / 2**20)
    assert found["within"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_thousand_passages_stay_within_the_bound_of_a_segment(tmp_path: Path) -> None:
    check(run(tmp_path / "memory.json", 200_000, 10_000), 200_000)
