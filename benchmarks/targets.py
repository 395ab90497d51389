"""What a second round trains on: `python benchmarks/targets.py --out benchmarks/results/targets-mtrag.json [field=value]`.

The student of the first round encodes the rewrites beside the document encoder (`score.student_encodes_rewrites`), and a
second round learns from the mean of both lists of every teacher. Here the same is done with turns that the student has not
seen: those that each fold of `folds.py` holds out (the same students, found where they are trained already). Printed are all
lists alone and their combinations, as rankings of the candidates, beside the student that reads the conversation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

from folds import CONFIG, share_of
from held_out import evaluate_on, recorded_rewrites
from processes import machine

from raydistill.actor_pool import connect
from raydistill.config_loading import load_config
from raydistill.evaluation.ablation import ablation
from raydistill.evaluation.evaluate import STUDENT, load_metrics
from raydistill.index.mine import mine_candidates
from raydistill.pipeline import Chain

Means = dict[str, dict[str, float]]
"""System -> measure -> mean."""
ENCODERS = {False: "the document encoder's scores", True: "the document encoder's and the student's scores"}


def main() -> int:
    """Mine and measure every fold's held-out turns; print a table of all and store it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_args()
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    turns = 0
    for fold in range(options.folds):
        judged, means = _fold(options.config, [*options.overrides, share_of(fold, options.folds)])
        turns += judged
        for system, of_system in means.items():
            for measure, mean in of_system.items():
                sums[system][measure] += judged * mean
    systems = {system: {measure: total / turns for measure, total in own.items()} for system, own in sums.items()}
    for system, means in systems.items():
        print(f"{system:48}", *(f"{measure} {mean:.3f}" for measure, mean in means.items()))
    if options.out:
        content = {
            "config": options.config.name,
            "overrides": [each for each in options.overrides if not each.startswith(("root=", "vars."))],
            "folds": options.folds,
            "turns": turns,
            "systems": systems,
            "machine": machine(),
            "versions": {name: version(name) for name in ("raydistill", "ray", "torch", "transformers", "deepspeed")},
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 0


def _fold(config: Path, overrides: list[str]) -> tuple[int, Means]:
    """Return the number of a fold's judged held-out turns, and what every ranking of their candidates reaches."""
    chain = Chain(load_config(config, overrides))
    chain.check("train")
    connect(chain.config.ray)
    held_out = chain.inputs.validation
    assert held_out is not None
    student, index = chain.train(), chain.index()
    evaluation = load_metrics(evaluate_on(held_out, chain))
    read = next(system for system in evaluation["systems"] if system["name"] == STUDENT)
    queries = [query for query in held_out.queries() if held_out.qrels.get(query.query_id)]
    rewrites = recorded_rewrites(held_out, chain)
    found: Means = {"student, full conversation": {name: each["mean"] for name, each in read["measures"].items()}}
    for by_student, encoders in ENCODERS.items():
        score = chain.config.score.model_copy(update={"student_encodes_rewrites": by_student})
        config_of_round = chain.settled.model_copy(update={"score": score})
        # Without gold passages: nobody may have them among the candidates who did not retrieve them.
        mined = mine_candidates(config_of_round, queries, {}, rewrites, index, student if by_student else None)
        compared = ablation(mined, index, held_out.qrels, chain.config.evaluate)
        for row in compared.rows:
            if row.kind == "teacher" or row.name == "mean":
                name = f"mean of {encoders}" if row.name == "mean" else row.name
                found[name] = {measure: each["mean"] for measure, each in row.measures.items()}
    return len(queries), found


if __name__ == "__main__":
    sys.exit(main())
