"""The paper study: `python benchmarks/study.py --out benchmarks/results/study-mtrag.json [section.field=value ...]`.

Runs (or continues) the study of `jobs/configs/study-mtrag.yaml` and then asks which order relations of the literature
hold in it: differences of trials on the same turns, with 95 % bootstrap intervals. A relation "holds" where its difference
has the expected sign and "is clear" where the interval excludes the opposite.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from raydistill.cli import main as raydistill
from raydistill.evaluation.evaluate import STUDENT, load_metrics
from raydistill.evaluation.significance import mean_interval
from raydistill.storage.artifacts import Artifact
from raydistill.storage.store import open_store
from raydistill.tuning.trials import Study, load_study

CHECKOUT = Path(__file__).resolve().parent.parent
STUDY = CHECKOUT / "jobs" / "configs" / "study-mtrag.yaml"
SAMPLES, SEED = 2000, 0
NDCG, RECALL = "nDCG@10", "R@100"

# Name, line and label of the trial that is expected to be higher, of the other, and the measure.
RELATIONS = (
    ("KLD alone has the higher recall than InfoNCE alone", ("contrastive weight", "0"), ("contrastive weight", "1"), RECALL),
    ("a 10 % mix is more precise than KLD alone", ("contrastive weight", "0.1"), ("contrastive weight", "0"), NDCG),
    ("a 20 % mix is more precise than KLD alone", ("contrastive weight", "0.2"), ("contrastive weight", "0"), NDCG),
    ("a 10 % mix keeps the recall of KLD alone", ("contrastive weight", "0.1"), ("contrastive weight", "0"), RECALL),
    ("8 samples are better than 1", ("samples", "8"), ("samples", "1"), RECALL),
    ("16 samples are better than 8", ("samples", "16"), ("samples", "8"), RECALL),
    ("32 samples are better than 16", ("samples", "32"), ("samples", "16"), RECALL),
    ("two teachers are better than mixtral alone", ("teacher", "both"), ("teacher", "mixtral"), RECALL),
    ("two teachers are better than sonnet alone", ("teacher", "both"), ("teacher", "sonnet"), RECALL),
    ("70 samples are worse than 32", ("samples", "32"), ("samples", "70"), RECALL),
)


def main() -> int:
    """Run the study, print a table and the relations, store both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=STUDY)
    parser.add_argument("--out", type=Path, help="JSON file to write; a Markdown table goes beside it")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_args()
    status = raydistill(["tune", "--config", str(options.config), *options.overrides])
    if status:
        return status
    study = load_study(options.config, options.overrides)
    store = open_store(study.base.root)
    content = json.loads(store.read(f"runs/{study.tune.name}/study.json"))
    values = {trial["id"]: _per_query(study, trial) for trial in content["trials"] if not trial["failure"]}
    content["relations"] = _relations(content["trials"], values)
    content["sparsity"] = _sparsity(content["trials"], values)
    content["systems"] = _systems(study, content["trials"])
    text = _markdown(content)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        options.out.with_suffix(".md").write_text(text)
        options.out.with_suffix(".html").write_bytes(store.read(f"runs/{study.tune.name}/report.html"))
    return 0


def _per_query(study: Study, trial: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return measure -> value of every turn, in the same order for all trials."""
    evaluation = Artifact(study.base.root, "evaluation", "test", trial["evaluation"])
    rows = pq.read_table(evaluation.fetch(evaluation.part("per-query"))).to_pylist()
    rows = sorted((row for row in rows if row["system"] == STUDENT), key=lambda row: row["query_id"])
    return {measure: np.array([row[measure] for row in rows]) for measure in (NDCG, RECALL)}


def _on(trials: list[dict[str, Any]], line: str, label: str) -> dict[str, Any] | None:
    found = (trial for trial in trials if trial["lines"].get(line) == label and not trial["failure"])
    return next(found, None)


def _relations(trials: list[dict[str, Any]], values: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
    rows = []
    for name, higher, lower, measure in RELATIONS:
        first, second = _on(trials, *higher), _on(trials, *lower)
        if first is None or second is None:
            continue
        interval = mean_interval(values[first["id"]][measure] - values[second["id"]][measure], SAMPLES, SEED)
        found = {"holds": interval.mean >= 0, "is clear": interval.low >= 0 or interval.high < 0}
        rows.append({"relation": name, "measure": measure, **asdict(interval), **found})
    return rows


def _sparsity(trials: list[dict[str, Any]], values: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Return what each point of the sparsity line costs against the one without a target."""
    base = _on(trials, "sparsity", "no target")
    if base is None:
        return []
    rows = []
    for trial in trials:
        if "sparsity" in trial["lines"] and not trial["failure"] and trial is not base:
            lost = mean_interval(values[base["id"]][RECALL] - values[trial["id"]][RECALL], SAMPLES, SEED)
            depths = list(trial["l0 by depth"].values())
            rows.append(
                {
                    "target": trial["lines"]["sparsity"],
                    "flops share": trial["flops"] / base["flops"],
                    "l0": trial["l0"],
                    "l0 deepest to second depth": depths[-1] / depths[1] if len(depths) > 1 else None,
                    "recall lost": asdict(lost),
                    "recall lost, share": lost.mean / base[RECALL],
                }
            )
    return rows


def _systems(study: Study, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what teachers and baselines reach on the same turns, searched the same way; [] when all trials failed."""
    trial = next((trial for trial in trials if not trial["failure"]), None)
    if trial is None:
        return []
    metrics = load_metrics(Artifact(study.base.root, "evaluation", "test", trial["evaluation"]))
    return [
        {
            "system": system["name"],
            **{measure: system["measures"][measure] for measure in (NDCG, RECALL)},
            "flops": system["flops"]["mean"],
            "l0": system["terms"]["mean"],
        }
        for system in metrics["systems"]
        if system["role"] != "student"
    ]


def _markdown(content: Mapping[str, Any]) -> str:
    lines = ["| trial | nDCG@10 | R@100 | FLOPS | L0 | train s | front |", "|---|---|---|---|---|---|---|"]
    for trial in content["trials"]:
        if trial["failure"]:
            lines.append(f"| {trial['label']} | failed: {trial['failure']} | | | | | |")
            continue
        cells = [f"{trial[name]:.3f} [{trial[f'{name} low']:.3f}, {trial[f'{name} high']:.3f}]" for name in (NDCG, RECALL)]
        cells += [f"{trial['flops']:.2f}", f"{trial['l0']:.1f}", f"{trial['training_seconds']:.0f}"]
        lines.append(f"| {trial['label']} | {' | '.join(cells)} | {'*' if trial['on_front'] else ''} |")
    for system in content["systems"]:
        found = [system[name] for name in (NDCG, RECALL)]
        cells = [f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" for value in found]
        lines.append(f"| ({system['system']}) | {' | '.join(cells)} | {system['flops']:.2f} | {system['l0']:.1f} | | |")
    lines += ["", "| relation | measure | difference [95 %] | holds | clear |", "|---|---|---|---|---|"]
    for row in content["relations"]:
        interval = f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        holds, clear = ("yes" if row[key] else "no" for key in ("holds", "is clear"))
        lines.append(f"| {row['relation']} | {row['measure']} | {interval} | {holds} | {clear} |")
    lines += ["", "| target | FLOPS against none | L0 | R@100 lost |", "|---|---|---|---|"]
    for row in content["sparsity"]:
        lines.append(f"| {row['target']} | {row['flops share']:.0%} | {row['l0']:.1f} | {row['recall lost, share']:+.1%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
