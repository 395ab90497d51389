"""Test turns of several sources taken together: `python benchmarks/tested.py --config FILE --test '{...}' --test '{...}'`.

Runs a configuration once for each `--test`, a value of `data.test` with a name; only the first run trains, the others
search with the same student. A table by source and over all turns, and the student's differences to each teacher with 95 %
bootstrap intervals: what one source has too few turns to tell, two may. `--against FILE` compares with the student of
another result.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from folds import ALL, Row, against, costs_of, differences_of, means_of, print_tables, rows_of, student_values, told
from processes import machine

from raydistill.actor_pool import connect
from raydistill.config_loading import load_config
from raydistill.pipeline import Chain


def main() -> int:
    """Run what is not run yet, print a table and the differences, store both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--test", action="append", required=True, metavar="'{name: …, conversations: …, qrels: …}'")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--against", type=Path, help="JSON file of the same turns with another student")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_args()
    other = json.loads(options.against.read_text()) if options.against else None
    versions = {name: version(name) for name in ("raydistill", "ray", "torch", "transformers", "deepspeed")}
    rows: list[Row] = []
    costs: list[Row] = []
    for test in options.test:
        name = str((yaml.safe_load(test) or {}).get("name") or "")
        if not name or name == ALL:
            raise SystemExit(f"--test {test}: give it a name, by which its turns are told from the others'")
        chain = Chain(load_config(options.config, [*options.overrides, f"data.test={test}"]))
        chain.check()
        connect(chain.config.ray)
        found, spent = rows_of(
            chain.evaluate(), dict.fromkeys((turn.query_id for turn in chain.inputs.test.queries()), name)
        )
        rows += found
        costs += spent
    measures = [name for name in rows[0] if "@" in name]
    content: dict[str, Any] = {
        "config": options.config.name,
        "overrides": [told(each) for each in options.overrides if not each.startswith(("root=", "vars."))],
        "systems": means_of(rows, measures),
        "differences": differences_of(rows, measures),
        "costs": costs_of(costs),
        "student": student_values(rows, measures),
        "machine": machine(),
        "versions": versions,
    }
    if other is not None:
        content["against"] = {"overrides": other["overrides"], **against(content["student"], other["student"])}
    print_tables(content, measures)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
