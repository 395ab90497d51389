"""Cross-validation: `python benchmarks/folds.py --out benchmarks/results/folds-mtrag.json [section.field=value ...]`.

Trains the student of a configuration once a fold, each time without a share of the judged training conversations, and
searches with it for just these; the recorded teachers and the baselines beside it, in the same index. Together the folds
measure every judged training conversation once: several times the turns of one held-out share, and no test turn. Differences
between the student and each teacher are of the same turns, with 95 % bootstrap intervals; so are, with `--against FILE`,
those between it and the student of another result. What queries cost is told by depth.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from held_out import evaluate_on
from processes import machine

from raydistill.actor_pool import connect
from raydistill.config_loading import load_config
from raydistill.evaluation.evaluate import STUDENT, load_metrics
from raydistill.evaluation.significance import mean_interval
from raydistill.pipeline import Chain
from raydistill.storage.artifacts import Artifact

CHECKOUT = Path(__file__).resolve().parent.parent
CONFIG = CHECKOUT / "jobs" / "configs" / "mtrag-small.yaml"
SAMPLES, SEED = 2000, 0
ALL = "all"
DEEP = 8
"""From this turn on, turns are taken together: few conversations have more."""

Row = dict[str, Any]


def main() -> int:
    """Run the folds, print a table and the differences, store both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--against", type=Path, help="JSON file of the same folds with another student")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_args()
    other = other_result(options.against)
    if other is not None and other["folds"] != options.folds:
        raise SystemExit(f"--against: {options.against} has {other['folds']} folds; compare with as many")
    versions = installed()
    rows: list[Row] = []
    costs: list[Row] = []
    for fold in range(options.folds):
        found, spent = _held_out_rows(options.config, [*options.overrides, share_of(fold, options.folds)])
        rows += found
        costs += spent
    store_result(options, rows, costs, versions, other, folds=options.folds)
    return 0


def store_result(
    options: argparse.Namespace,
    rows: list[Row],
    costs: list[Row],
    versions: dict[str, str],
    other: Row | None,
    **further: Any,
) -> None:
    """Print tables of the turns' rows, and write them where `--out` says.

    Args:
        options: with config, overrides and out. other: what `--against` names. further: what else to store.
    """
    measures = [name for name in rows[0] if "@" in name]
    content = {
        "config": options.config.name,
        "overrides": [told(each) for each in options.overrides if not each.startswith(("root=", "vars."))],
        **further,
        "systems": _systems(rows, measures),
        "differences": _differences(rows, measures),
        "costs": _costs(costs),
        "student": {measure: _values(rows, measure, ALL)[STUDENT] for measure in measures},
        "machine": machine(),
        "versions": versions,
    }
    if other is not None:
        content["against"] = {"overrides": other["overrides"], **_against(content["student"], other["student"])}
    _print(content, measures)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def other_result(path: Path | None) -> Row | None:
    """Return the result that `--against` names; None where it names none. Raises SystemExit where there is none to read."""
    if path is None:
        return None
    if not path.is_file():
        raise SystemExit(f"--against: there is no file {path}")
    found: Row = json.loads(path.read_text())
    return found


def installed() -> dict[str, str]:
    """Return the versions that a result names. To be asked for first: it fails where raydistill is not installed."""
    return {name: version(name) for name in ("raydistill", "ray", "torch", "transformers", "deepspeed")}


def told(override: str) -> str:
    """Return an override without the place of this machine that it may name, which is nobody's concern."""
    field, _, value = override.partition("=")
    return f"{field}={Path(value).name}" if field == "student.model" and "/" in value else override


def share_of(fold: int, folds: int) -> str:
    """Return the override that holds out one of so many folds."""
    # Rounded down, so that the last fold is within.
    return f"data.validation={{share: {1 / folds - 1e-9:.9f}, fold: {fold}}}"


def _held_out_rows(config: Path, overrides: list[str]) -> tuple[list[Row], list[Row]]:
    """Train what is not trained yet; return a row a system and held-out turn, with its source and the system's role, and a
    row a system and depth with what its queries cost."""
    chain = Chain(load_config(config, overrides))
    chain.check("train")
    connect(chain.config.ray)
    held_out = chain.inputs.validation
    assert held_out is not None
    source_of = {turn.query_id: each.source for each in held_out.conversations for turn in each.asked}
    return rows_of(evaluate_on(held_out, chain), source_of)


def rows_of(evaluation: Artifact, source_of: Mapping[str, str]) -> tuple[list[Row], list[Row]]:
    """Return a row a system and turn of an evaluation, with the turn's source and the system's role, and a row a system and
    depth with what its queries cost."""
    systems = load_metrics(evaluation)["systems"]
    roles = {system["name"]: system["role"] for system in systems}
    costs = [{"system": system["name"], **each} for system in systems for each in system["by_depth"]]
    found = pq.read_table(evaluation.fetch(evaluation.part("per-query"))).to_pylist()
    return [{**row, "source": source_of[row["query_id"]], "role": roles[row["system"]]} for row in found], costs


def _values(rows: list[Row], measure: str, source: str) -> dict[str, dict[str, float]]:
    """Return system -> query id -> value, of one source or of all."""
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if source in (ALL, row["source"]):
            values[row["system"]][row["query_id"]] = row[measure]
    return values


def _sources(rows: list[Row]) -> list[str]:
    return [*dict.fromkeys(row["source"] for row in rows), ALL]


def _interval(values: np.ndarray) -> dict[str, float]:
    return asdict(mean_interval(values, SAMPLES, SEED))


def _systems(rows: list[Row], measures: list[str]) -> list[dict[str, Any]]:
    systems = []
    for source in _sources(rows):
        values = {measure: _values(rows, measure, source) for measure in measures}
        for system, per_query in values[measures[0]].items():
            means = {measure: _interval(np.array(list(values[measure][system].values()))) for measure in measures}
            systems.append({"system": system, "source": source, "turns": len(per_query), **means})
    return systems


def _differences(rows: list[Row], measures: list[str]) -> list[dict[str, Any]]:
    """Return the student minus each teacher, of the same turns."""
    teachers = [name for name in dict.fromkeys(row["system"] for row in rows) if _role(rows, name) == "teacher"]
    found = []
    for source in _sources(rows):
        for measure in measures:
            values = _values(rows, measure, source)
            for teacher in teachers:
                turns = sorted(values[STUDENT])
                ours, theirs = (np.array([values[name][turn] for turn in turns]) for name in (STUDENT, teacher))
                found.append({"source": source, "measure": measure, "teacher": teacher, **_interval(ours - theirs)})
    return found


def _costs(rows: list[Row]) -> list[dict[str, Any]]:
    """Return mean terms (L0) and FLOPS a query of each system, of all turns and by depth; the deepest turns together."""
    found = []
    for system in dict.fromkeys(row["system"] for row in rows):
        own = [row for row in rows if row["system"] == system]
        groups: dict[str, list[Row]] = {}
        for row in sorted(own, key=lambda row: row["first"]):
            name = f"turn {DEEP} and later" if row["first"] >= DEEP else f"turn {row['label']}"
            groups.setdefault(name, []).append(row)
        by_depth = {name: _cost(group) for name, group in groups.items()}
        found.append({"system": system, **_cost(own), "by_depth": by_depth})
    return found


def _cost(rows: list[Row]) -> dict[str, float]:
    turns = sum(row["queries"] for row in rows)
    means = {name: sum(row[name]["mean"] * row["queries"] for row in rows) / turns for name in ("terms", "flops")}
    return {"turns": turns, **means}


def _against(ours: dict[str, dict[str, float]], others: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return our student minus the other one, by measure, of the same turns."""
    found = {}
    for measure, values in ours.items():
        turns = sorted(values)
        if turns != sorted(others[measure]):
            raise SystemExit("--against: the file has other turns; make it with the same turns of the same conversations")
        found[measure] = _interval(np.array([values[turn] - others[measure][turn] for turn in turns]))
    return found


def _role(rows: list[Row], system: str) -> str:
    return next(str(row["role"]) for row in rows if row["system"] == system)


def _print(content: dict[str, Any], measures: list[str]) -> None:
    for row in content["systems"]:
        cells = [f"{name} {row[name]['mean']:.3f} [{row[name]['low']:.3f}, {row[name]['high']:.3f}]" for name in measures]
        print(f"{row['source']:8} {row['turns']:4} {row['system']:18}", *cells)
    for row in content["differences"]:
        span = f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        print(f"{row['source']:8} student - {row['teacher']:18} {row['measure']:8} {span}")
    for row in content["costs"]:
        depths = ", ".join(f"{name} {each['terms']:.1f}" for name, each in row["by_depth"].items())
        print(f"{row['system']:18} FLOPS {row['flops']:.2f}, terms {row['terms']:.1f} ({depths})")
    for measure, row in content.get("against", {}).items():
        if measure in measures:
            print(f"student - other student {measure:8} {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]")


if __name__ == "__main__":
    sys.exit(main())
