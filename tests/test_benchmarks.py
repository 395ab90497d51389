"""The benchmark scripts can be loaded: they are run by hand, so nothing else notices a name that moved away."""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in (CHECKOUT / "benchmarks").glob("*.py"))


def test_every_script_can_be_imported() -> None:
    assert SCRIPTS
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "benchmarks")])}
    ended = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(SCRIPTS)}"], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
