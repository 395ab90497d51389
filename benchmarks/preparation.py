"""Preparing synthetic lines, against a plain Python reader: `python benchmarks/preparation.py --out results/NAME.json`.

One tab-separated file of passages (60 words each, seeded) is read into a dictionary by a plain single-process script, which
is how such collections are often loaded; prepared by `raydistill prepare`; and prepared again after that job was killed
half-way. Reported are lines a second of wall time (with the start of Ray, which takes some seconds whatever the size), peak
memory of the driver and of all processes, and how many parts the second job found and kept. Two sizes tell whether memory
grows with the collection. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from job_footprint import measure

_PLAIN = """
import sys
passages = {}
with open(sys.argv[1], encoding="utf-8") as file:
    for line in file:
        passage_id, text = line.rstrip("\\n").split("\\t")
        passages[passage_id] = text
"""
_WORDS = [f"word{number}" for number in range(20_000)]


def write_lines(path: Path, lines: int) -> None:
    """Write a collection of `id<TAB>text` lines, 10,000 texts that repeat with a number behind them."""
    draw = random.Random(7)
    texts = [" ".join(draw.choices(_WORDS, k=60)) for _ in range(10_000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            file.write(f"{number}\t{texts[number % len(texts)]} {number}\n")


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "raydistill.cli", "prepare", "--config", str(config)]


def write_config(folder: Path, root: Path, collection: Path, per_part: int) -> Path:
    """Write the configuration of a preparation and return its path."""
    tree = {
        "dataset": "synthetic",
        "to": str(root),
        "corpus": {"corpus": [str(collection)], "corpus_format": "msmarco"},
        "passages_per_part": per_part,
        "ray": {"local_cpus": 2},
    }
    path = folder / f"{root.name}.yaml"
    path.write_text(json.dumps(tree))
    return path


def receipts(root: Path) -> dict[str, int]:
    """Return when each receipt was written, by name."""
    return {path.name: path.stat().st_mtime_ns for path in root.rglob("_receipts/*.json")}


def killed_and_continued(config: Path, root: Path, parts: int) -> dict[str, float]:
    """Kill the job when half of its parts are there, run it again, and return what the second run kept and took."""
    job = subprocess.Popen(command(config), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(receipts(root)) < parts // 2 and job.poll() is None:
        time.sleep(0.1)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    time.sleep(2)  # until Ray's processes have noticed that their driver is dead
    before = receipts(root)
    footprint = measure(command(config))
    after = receipts(root)
    return {"parts": parts, "kept": sum(after[name] == changed for name, changed in before.items()), **footprint}


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lines", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--parts", type=int, default=10, help="Parquet parts of each size")
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for lines in options.lines:
        with tempfile.TemporaryDirectory(prefix="raydistill-preparation-") as name:
            folder = Path(name)
            collection, per_part = folder / "collection.tsv", -(-lines // options.parts)
            write_lines(collection, lines)
            found = {"plain": measure([sys.executable, "-c", _PLAIN, str(collection)])}
            found["prepare"] = measure(command(write_config(folder, folder / "whole", collection, per_part)))
            config = write_config(folder, folder / "killed", collection, per_part)
            found["continued"] = killed_and_continued(config, folder / "killed", options.parts)
            for row in found.values():
                row["lines_per_second"] = lines / row["seconds"]
            results[str(lines)] = found
            print(lines, json.dumps(found, indent=1))
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    versions = {name: version(name) for name in ("raydistill", "ray", "pyarrow")}
    options.out.write_text(json.dumps({"machine": machine, "versions": versions, "lines": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
