"""Wall time and memory of a whole job: `python benchmarks/job_footprint.py --out results/NAME.json -- COMMAND`.

Runs the command and samples all of its processes (Ray's daemons and workers are its descendants) once a second from
/proc. Reported are the peaks over time of: the driver's resident memory, the sum of resident memory (shared pages counted
once a process), and the sum of proportional memory (shared pages counted once in all). Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

_SECONDS = 1.0


def descendants(root: int) -> list[int]:
    """Return the process and everything below it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def memory(pid: int) -> tuple[int, int]:
    """Return (resident, proportional) bytes of a process, (0, 0) when it is gone."""
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {row.split(":")[0]: int(row.split()[1]) * 1024 for row in rows if row.endswith("kB")}
    return sizes.get("Rss", 0), sizes.get("Pss", 0)


def measure(command: list[str]) -> dict[str, float]:
    """Run the command to its end and return its footprint; bytes and seconds."""
    started = time.monotonic()
    process = subprocess.Popen(command)
    peaks = {"driver_rss": 0.0, "all_rss": 0.0, "all_pss": 0.0, "processes": 0.0}
    while process.poll() is None:
        sizes = {pid: memory(pid) for pid in descendants(process.pid)}
        now = {
            "driver_rss": sizes.get(process.pid, (0, 0))[0],
            "all_rss": sum(rss for rss, _ in sizes.values()),
            "all_pss": sum(pss for _, pss in sizes.values()),
            "processes": len(sizes),
        }
        peaks = {name: max(peaks[name], value) for name, value in now.items()}
        time.sleep(_SECONDS)
    return {**peaks, "seconds": time.monotonic() - started, "exit_status": process.returncode}


def main() -> int:
    """Measure the command after `--`, print and store the result, and return the command's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    footprint = measure(command)
    result = {
        "command": [Path(command[0]).name, *command[1:]],
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("raydistill", "ray", "torch", "transformers", "deepspeed")},
        **footprint,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{footprint['seconds']:.0f} s; peak memory: driver {footprint['driver_rss'] / 2**30:.2f} GiB resident, all "
        f"{footprint['processes']:.0f} processes {footprint['all_pss'] / 2**30:.2f} GiB proportional "
        f"({footprint['all_rss'] / 2**30:.2f} GiB resident sum)",
        file=sys.stderr,
    )
    return int(footprint["exit_status"])


if __name__ == "__main__":
    sys.exit(main())
