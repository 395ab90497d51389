"""The paper study: `python benchmarks/study.py --out benchmarks/results/study-mtrag.json [section.field=value ...]`.

Runs (or continues) the study of `jobs/configs/study-mtrag.yaml`, measures its recorded teachers and the baselines on the
same turns, and then asks which order relations of the literature hold: differences on the same turns, with 95 % bootstrap
intervals. A relation "holds" where its difference has the expected sign and "is clear" where the interval excludes the
opposite. Query lengths by depth are those of all held-out turns, judged or not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from held_out import evaluate_on
from processes import machine

from raydistill.cli import main as raydistill
from raydistill.conversations.text import history_pairs, student_text
from raydistill.encoders.checkpoint import load_student
from raydistill.evaluation.evaluate import FULL_CONVERSATION, STUDENT, load_metrics
from raydistill.evaluation.significance import mean_interval
from raydistill.pipeline import Chain
from raydistill.storage.artifacts import Artifact
from raydistill.storage.folders import fetch_folder
from raydistill.storage.store import open_store
from raydistill.tuning.trials import Study, Trial, load_study

CHECKOUT = Path(__file__).resolve().parent.parent
STUDY = CHECKOUT / "jobs" / "configs" / "study-mtrag.yaml"
SAMPLES, SEED = 2000, 0
NDCG, RECALL = "nDCG@10", "R@100"

# Name, line and label of the trial that is expected to be higher, of the other, and the measure.
SYSTEM, BEST_TEACHER = "system", "the best teacher"
EARLY, LATE = 2, 8
"""Turn depths whose query lengths are compared."""

# Name, line and label of the trial that is expected to be higher, of the other, and the measure. For the line SYSTEM the
# label is a system's name, measured beside the base trial.
RELATIONS = (
    ("a rewriting teacher is above the full conversation", (SYSTEM, BEST_TEACHER), (SYSTEM, FULL_CONVERSATION), RECALL),
    ("the student is above the best rewriting teacher", (SYSTEM, STUDENT), (SYSTEM, BEST_TEACHER), RECALL),
    ("the student is above the best rewriting teacher", (SYSTEM, STUDENT), (SYSTEM, BEST_TEACHER), NDCG),
    ("KLD alone has the higher recall than InfoNCE alone", ("contrastive weight", "0"), ("contrastive weight", "1"), RECALL),
    ("a 10 % mix is more precise than KLD alone", ("contrastive weight", "0.1"), ("contrastive weight", "0"), NDCG),
    ("a 20 % mix is more precise than KLD alone", ("contrastive weight", "0.2"), ("contrastive weight", "0"), NDCG),
    ("a 10 % mix keeps the recall of KLD alone", ("contrastive weight", "0.1"), ("contrastive weight", "0"), RECALL),
    ("8 samples are better than 1", ("samples", "8"), ("samples", "1"), RECALL),
    ("16 samples are better than 8", ("samples", "16"), ("samples", "8"), RECALL),
    ("32 samples are better than 16", ("samples", "32"), ("samples", "16"), RECALL),
    ("70 samples are worse than 32", ("samples", "32"), ("samples", "70"), RECALL),
    *(
        (f"all four teachers are better than {name} alone", ("teacher", "all four"), ("teacher", name), measure)
        for name in ("mixtral", "mixtral-targeted", "sonnet", "sonnet-targeted")
        for measure in (RECALL, NDCG)
    ),
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
    trials = [trial for trial in content["trials"] if not trial["failure"]]
    artifacts = {trial["id"]: Artifact(study.base.root, "evaluation", "test", trial["evaluation"]) for trial in trials}
    values = {identity: _per_query(artifact, STUDENT) for identity, artifact in artifacts.items()}
    beside = _beside_the_base(study)
    content["systems"] = _systems(beside)
    by_system = {row["system"]: _per_query(beside, row["system"]) for row in content["systems"]}
    content["relations"] = _relations(trials, values, by_system, content["systems"])
    lengths = {trial.identity: _lengths(trial) for trial in study.trials if "sparsity" in trial.lines}
    content["sparsity"] = _sparsity(trials, values, lengths)
    content["machine"] = machine()
    content["versions"] = {name: version(name) for name in ("raydistill", "ray", "torch", "transformers", "deepspeed")}
    text = _markdown(content)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        options.out.with_suffix(".md").write_text(text)
        options.out.with_suffix(".html").write_bytes(store.read(f"runs/{study.tune.name}/report.html"))
    return 0


def _beside_the_base(study: Study) -> Artifact:
    """Evaluate the base trial once more, on the same turns, with the recorded teachers and the baselines beside it."""
    chain = Chain(study.trials[0].config)
    held_out = chain.inputs.validation if study.tune.measured_on == "validation" else chain.inputs.test
    assert held_out is not None
    return evaluate_on(held_out, chain)


def _per_query(evaluation: Artifact, system: str) -> dict[str, np.ndarray]:
    """Return measure -> value of every turn, in the same order for all systems and trials."""
    rows = pq.read_table(evaluation.fetch(evaluation.part("per-query"))).to_pylist()
    rows = sorted((row for row in rows if row["system"] == system), key=lambda row: row["query_id"])
    return {measure: np.array([row[measure] for row in rows]) for measure in (NDCG, RECALL)}


def _on(trials: Sequence[dict[str, Any]], line: str, label: str) -> dict[str, Any] | None:
    return next((trial for trial in trials if trial["lines"].get(line) == label), None)


def _relations(
    trials: Sequence[dict[str, Any]],
    values: Mapping[str, Mapping[str, np.ndarray]],
    by_system: Mapping[str, Mapping[str, np.ndarray]],
    systems: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    def found(line: str, label: str, measure: str) -> np.ndarray | None:
        if line != SYSTEM:
            trial = _on(trials, line, label)
            return None if trial is None else values[trial["id"]][measure]
        if label != BEST_TEACHER:
            return by_system[label][measure]
        teachers = [row for row in systems if row["role"] == "teacher"]
        best = max(teachers, key=lambda row: row[measure]["mean"])
        return by_system[best["system"]][measure]

    rows = []
    for name, higher, lower, measure in RELATIONS:
        first, second = found(*higher, measure), found(*lower, measure)
        if first is None or second is None:
            continue
        interval = mean_interval(first - second, SAMPLES, SEED)
        verdict = {"holds": interval.mean >= 0, "is clear": interval.low >= 0 or interval.high < 0}
        rows.append({"relation": name, "measure": measure, **asdict(interval), **verdict})
    return rows


def _lengths(trial: Trial) -> dict[int, list[int]]:
    """Return depth -> number of query terms of every held-out turn of that depth, validation and test together."""
    chain, text = Chain(trial.config), trial.config.student.text
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_student(fetch_folder(chain.train(), Path(folder)), trial.config.student.trust_remote_code)
    held_out = [found for found in (chain.inputs.validation, chain.inputs.test) if found is not None]
    turns = [query for found in held_out for query in found.queries()]
    separator = loaded.tokenizer.sep_token or ""
    texts = [student_text(query.question, history_pairs(query), text, separator) for query in turns]
    lengths: dict[int, list[int]] = {}
    for query, terms in zip(turns, loaded.encoder(device="cpu").encode_queries(texts).lengths(), strict=True):
        lengths.setdefault(query.depth, []).append(int(terms))
    return lengths


def _sparsity(
    trials: Sequence[dict[str, Any]],
    values: Mapping[str, Mapping[str, np.ndarray]],
    lengths: Mapping[str, Mapping[int, Sequence[int]]],
) -> list[dict[str, Any]]:
    """Return what each point of the sparsity line costs against the one without a target."""
    base = _on(trials, "sparsity", "no target")
    if base is None:
        return []
    rows = []
    for trial in trials:
        if "sparsity" not in trial["lines"]:
            continue
        lost = mean_interval(values[base["id"]][RECALL] - values[trial["id"]][RECALL], SAMPLES, SEED)
        by_depth = lengths[trial["id"]]
        early, late = (float(np.mean(by_depth[depth])) for depth in (EARLY, LATE))
        rows.append(
            {
                "target": trial["lines"]["sparsity"],
                "flops": trial["flops"],
                "flops share": trial["flops"] / base["flops"],
                "l0": trial["l0"],
                f"l0 at depth {EARLY}": early,
                f"l0 at depth {LATE}": late,
                "turns at these depths": [len(by_depth[depth]) for depth in (EARLY, LATE)],
                "l0 late / early": late / early,
                "recall lost, share": {name: value / base[RECALL] for name, value in asdict(lost).items()},
            }
        )
    return rows


def _systems(evaluation: Artifact) -> list[dict[str, Any]]:
    """Return what the base trial, its teachers and the baselines reach on the same turns, searched the same way."""
    return [
        {
            "system": system["name"],
            "role": system["role"],
            **{measure: system["measures"][measure] for measure in (NDCG, RECALL)},
            "flops": system["flops"]["mean"],
            "l0": system["terms"]["mean"],
        }
        for system in load_metrics(evaluation)["systems"]
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
        if system["role"] == "student":
            continue  # it is the base trial
        found = [system[name] for name in (NDCG, RECALL)]
        cells = [f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" for value in found]
        lines.append(f"| ({system['system']}) | {' | '.join(cells)} | {system['flops']:.2f} | {system['l0']:.1f} | | |")
    lines += ["", "| relation | measure | difference [95 %] | holds | clear |", "|---|---|---|---|---|"]
    for row in content["relations"]:
        interval = f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        holds, clear = ("yes" if row[key] else "no" for key in ("holds", "is clear"))
        lines.append(f"| {row['relation']} | {row['measure']} | {interval} | {holds} | {clear} |")
    lines += ["", f"| target | FLOPS | against none | L0 | L0 at turn {EARLY}, {LATE} | R@100 lost [95 %] |"]
    lines.append("|---|---|---|---|---|---|")
    for row in content["sparsity"]:
        lost = row["recall lost, share"]
        interval = f"{lost['mean']:+.1%} [{lost['low']:+.1%}, {lost['high']:+.1%}]"
        depths = f"{row[f'l0 at depth {EARLY}']:.1f}, {row[f'l0 at depth {LATE}']:.1f} ({row['l0 late / early']:.2f})"
        flops = f"{row['flops']:.2f} | {row['flops share']:.0%}"
        lines.append(f"| {row['target']} | {flops} | {row['l0']:.1f} | {depths} | {interval} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
