"""Tests whose cluster needs a driver of its own: they run their file as a program, which ends by printing JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.small_world import environment


def told_by(file: str, *arguments: str, **variables: str) -> dict[str, Any]:
    """Run a test's file with arguments and further environment variables, and return what it printed last."""
    done = subprocess.run(
        [sys.executable, file, *arguments],
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=450,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told
