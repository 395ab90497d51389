"""What a budget for a dear teacher costs in quality: `python benchmarks/spending.py --out benchmarks/results/NAME.json`.

On the training turns of a configuration whose rewrites are recorded (of its own domain), one teacher is taken to be dear and
two to be cheap. The dear one is asked about a share of the turns that have a history: those on which the cheap ones disagree
most, as `spend: {order: disagreement}` chooses, or as many at random. Where it was not asked it has no opinion. What is
measured is what a student would learn from: the ranking by the mean of the teachers that have one, on the judged turns.

Needs ../shared/data beside the checkout, or vars.data=... as an override.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from processes import CHECKOUT, machine

SHARES = (0.125, 0.25, 0.5, 0.75)
MEASURES = ("nDCG@10", "R@100")
DEPTH, RANDOM_DRAWS = 100, 50
CONFIGS = ("mtrag-clapnq", "mtrag-cloud")
DEAR, CHEAP = "sonnet", ("mixtral", "mixtral-targeted")


def main() -> int:
    """Measure both configurations, print tables, store the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes to both configurations")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "dear": DEAR, "cheap": CHEAP, "random_draws": RANDOM_DRAWS}
    for name in CONFIGS:
        result[name] = found = _measure(name, options.overrides)
        print(f"\n{name}: {found['turns']} turns, {found['with_history']} with a history, {found['judged']} judged")
        print(f"{'asked':>8}  {'calls':>6}  " + "  ".join(f"{measure:>28}" for measure in MEASURES))
        for row in found["rows"]:
            cells = [_cell(row, measure) for measure in MEASURES]
            print(f"{row['share']:>8.1%}  {row['calls']:>6}  " + "  ".join(f"{cell:>28}" for cell in cells))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _cell(row: dict[str, Any], measure: str) -> str:
    if "disagreement" not in row:
        return f"{row['value'][measure]:.4f}"
    chosen, drawn = row["disagreement"][measure], row["random"][measure]
    return f"{chosen:.4f} (random {drawn['mean']:.4f} ± {drawn['deviation']:.4f})"


def _measure(name: str, overrides: list[str]) -> dict[str, Any]:
    from raydistill.actor_pool import connect
    from raydistill.config import SpendConfig
    from raydistill.config_loading import load_config
    from raydistill.pipeline import Chain
    from raydistill.teachers.rewriting import rewrite_texts
    from raydistill.teachers.spending import Decision, decide, disagreements

    with tempfile.TemporaryDirectory() as root:
        chain = Chain(load_config(str(CHECKOUT / "jobs" / "configs" / f"{name}.yaml"), [f"root={root}", *overrides]))
        chain.check("score")
        connect(chain.config.ray)
        turns = _Turns(chain.mined("train"), chain.index(), chain.inputs.train.qrels)
        told = disagreements([rewrite_texts(chain.teach()["train"][teacher]) for teacher in CHEAP])
    own = chain.config.data.train[0].name
    queries = [query for query in chain.inputs.train.queries() if query.source == own and query.query_id in turns.ranked]
    asking = [query.query_id for query in queries if query.history]
    rows: list[dict[str, Any]] = [{"share": 0.0, "calls": 0, "value": turns.values(set())}]
    for share in SHARES:
        calls = round(share * len(asking))
        spend = SpendConfig(order="disagreement", among=CHEAP, calls=calls)
        decided = decide(queries, spend, lambda _: (0, 0), None, told).of
        chosen = {query_id for query_id, decision in decided.items() if decision is Decision.ASK}
        drawn = [
            turns.values(set(np.random.default_rng(draw).choice(asking, calls, replace=False).tolist()))
            for draw in range(RANDOM_DRAWS)
        ]
        spread = {
            measure: {
                "mean": float(np.mean([each[measure] for each in drawn])),
                "deviation": float(np.std([each[measure] for each in drawn])),
            }
            for measure in MEASURES
        }
        rows.append({"share": share, "calls": calls, "disagreement": turns.values(chosen), "random": spread})
    rows.append({"share": 1.0, "calls": len(asking), "value": turns.values(set(asking))})
    return {"turns": len(queries), "with_history": len(asking), "judged": len(turns.judged), "rows": rows}


class _Turns:
    """The judged training turns, ranked with the dear teacher and without it."""

    def __init__(self, candidates: Any, index: Any, qrels: Any) -> None:
        from raydistill.index.candidates import candidate_scores
        from raydistill.index.lookup import find_passages

        names = list(candidates.manifest().metadata["teachers"])
        cheap, dear = [names.index(name) for name in CHEAP], names.index(DEAR)
        passages = sorted({passage for grades in qrels.values() for passage in grades})
        # A judged passage that the corpus lacks keeps a name that nothing retrieves.
        numbers = {
            passage: str(number) if number >= 0 else passage
            for passage, number in zip(passages, find_passages(index, passages).tolist(), strict=True)
        }
        self.judged: dict[str, dict[str, int]] = {}
        self.ranked: dict[str, tuple[Any, Any]] = {}
        for part in candidates.manifest().parts:
            table = pq.read_table(candidates.fetch(part), columns=["query_id", "passages", "scores"])
            for row, query_id in enumerate(table.column("query_id").to_pylist()):
                self.ranked[query_id] = ((), ())
                if grades := qrels.get(query_id):
                    found, scores = candidate_scores(table, row)
                    self.judged[query_id] = {numbers[passage]: grade for passage, grade in grades.items()}
                    self.ranked[query_id] = (_best(found, scores[cheap]), _best(found, scores[[*cheap, dear]]))

    def values(self, asked: set[str]) -> dict[str, float]:
        """Return the measures when the dear teacher was asked about these turns."""
        from raydistill.evaluation.measures import score_run
        from raydistill.evaluation.runs import Run

        rankings = {query_id: self.ranked[query_id][query_id in asked] for query_id in self.judged}
        return score_run(Run("mean", rankings), self.judged, MEASURES).means()


def _best(passages: Any, scores: Any) -> tuple[tuple[str, float], ...]:
    """Return the best passages by the mean of the teachers that have an opinion."""
    from raydistill.teachers.combine import Combiner

    combined = Combiner()(scores)
    kept = np.flatnonzero(~np.isnan(combined))
    order = kept[np.argsort(-combined[kept], kind="stable")][:DEPTH]
    return tuple(zip(map(str, passages[order].tolist()), combined[order].tolist(), strict=True))


if __name__ == "__main__":
    sys.exit(main())
