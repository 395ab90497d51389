"""Test turns of several sources taken together: `python benchmarks/tested.py --config FILE --test '{...}' --test '{...}'`.

Runs a configuration once for each `--test`, a value of `data.test` with a name; only the first run trains, the others
search with the same student. A table by source and over all turns, and the student's differences to each teacher with 95 %
bootstrap intervals: what one source has too few turns to tell, two may. `--against FILE` compares with the student of
another result.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml
from folds import ALL, Row, installed, other_result, rows_of, store_result

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
    other = other_result(options.against)
    versions = installed()
    rows: list[Row] = []
    costs: list[Row] = []
    for test in options.test:
        fields = yaml.safe_load(test)
        name = str(fields.get("name") or "") if isinstance(fields, dict) else ""
        if name in ("", ALL):
            raise SystemExit(f"--test {test}: give it as {{name: …, conversations: …, qrels: …}}; its turns go by the name")
        chain = Chain(load_config(options.config, [*options.overrides, f"data.test={test}"]))
        chain.check()
        connect(chain.config.ray)
        source_of = {turn.query_id: name for turn in chain.inputs.test.queries()}
        found, spent = rows_of(chain.evaluate(), source_of)
        rows += found
        costs += spent
    store_result(options, rows, costs, versions, other)
    return 0


if __name__ == "__main__":
    sys.exit(main())
