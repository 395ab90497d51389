"""How benchmarks run and weigh a measurement: a process of its own with stated threads, its resident memory, the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
STATUS = Path("/proc/self/status")


def in_a_process(arguments: list[str], threads: int) -> str:
    """Run Python with the arguments and return its standard output; ends the benchmark when it fails."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "true",
        "RAYON_NUM_THREADS": str(threads),  # of tokenizers
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(CHECKOUT), str(CHECKOUT / "benchmarks"), os.environ.get("PYTHONPATH")])
        ),
    }
    ended = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"a measurement ended with status {ended.returncode}:\n{ended.stderr[-3000:]}")
    return ended.stdout


def memory(field: str) -> int:
    """Return a figure of this process in bytes: VmRSS, resident now, or VmHWM, the highest since it was reset."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Let VmHWM start again from what is resident now (proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return what the numbers were measured on."""
    found = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    model = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    found["cpu"] = model[0] if model else platform.machine()
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found
