"""What finished runs reached: `python benchmarks/effectiveness.py --out RESULTS.json REPORT.json [REPORT.json ...]`.

Reads the report.json files that runs leave under {root}/runs/{run} and keeps what a table needs: every system's measures
with their intervals, FLOPS and query length, the objective, the target, and the machine this is run on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> int:
    """Print a Markdown table a run and store all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT.json")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runs = [_run(json.loads(path.read_text())) for path in options.reports]
    for run in runs:
        print(_markdown(run))
    content = {
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("raydistill", "ray", "torch", "transformers", "deepspeed")},
        "runs": runs,
    }
    options.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 0


def _run(report: dict[str, Any]) -> dict[str, Any]:
    train, evaluation = report["config"]["train"], report["evaluation"]
    systems = [
        {
            "system": system["name"],
            "measures": system["measures"],
            "flops": system["flops"]["mean"],
            "l0": system["terms"]["mean"],
        }
        for system in evaluation["systems"]
    ]
    return {
        "run": report["config"]["run"],
        "test": Path(report["config"]["data"]["test"]["conversations"] or "").parent.name,
        "created": report["created"],
        "judged turns": evaluation["queries"],
        "rounds": report["config"]["rounds"],
        "student encodes rewrites": report["config"]["score"]["student_encodes_rewrites"],
        "objective": train["objective"],
        "regularisation": train["regularisation"],
        "training seconds": sum(stage["seconds"] for stage in report["stages"] if stage["stage"].startswith("train")),
        "systems": systems,
        "comparisons": evaluation["comparisons"],
    }


def _markdown(run: dict[str, Any]) -> str:
    names = list(run["systems"][0]["measures"])
    lines = [
        f"{run['run']}, {run['judged turns']} judged turns of {run['test']}",
        "",
        f"| system | {' | '.join(names)} | FLOPS | L0 |",
    ]
    lines.append("|---" * (len(names) + 3) + "|")
    for system in run["systems"]:
        cells = [f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" for value in system["measures"].values()]
        lines.append(f"| {system['system']} | {' | '.join(cells)} | {system['flops']:.2f} | {system['l0']:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
