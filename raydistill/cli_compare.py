"""The command that compares TREC runs of any origin; thin, like `cli`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any


def add_compare_command(commands: Any) -> None:
    """Add compare to an argparse sub-parsers object."""
    parser = commands.add_parser("compare", help="compare TREC runs on the same judgements, with intervals and paired tests")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="TREC run, or NAME=RUN; file or s3://, compressed by suffix")
    parser.add_argument("--qrels", required=True, help="TREC or BEIR qrels; every query in it counts")
    parser.add_argument("--baseline", metavar="NAME", help="the run that others are tested against (default: the first)")
    parser.add_argument(
        "--measures",
        default="nDCG@3,nDCG@10,R@10,R@100,RR",
        help="ir_measures names (default: nDCG@3,nDCG@10,R@10,R@100,RR)",
    )
    parser.add_argument("--samples", type=int, default=1000, help="bootstrap resamples (default: 1000)")
    parser.add_argument("--to", metavar="FOLDER", help="write comparison.json and comparison.html there")
    parser.set_defaults(command=_compare)


def _compare(options: argparse.Namespace) -> int:
    from raydistill.config import EvaluateConfig
    from raydistill.config_loading import build_section
    from raydistill.conversations.qrels import read_qrels
    from raydistill.errors import ConfigError
    from raydistill.evaluation.comparison import compare_runs, comparison_json, comparison_page, console_table
    from raydistill.evaluation.runs import read_run
    from raydistill.progress import output_console
    from raydistill.storage.local import output_folder

    folder = None if options.to is None else output_folder(options.to, "--to")
    measures = [name.strip() for name in options.measures.split(",") if name.strip()]
    # A run file has its own depth: no measure is too deep for it.
    settings = {"measures": measures, "bootstrap_samples": options.samples, "depth": 2**31}
    config = build_section(EvaluateConfig, settings, [], "compare")
    runs = []
    for given in options.runs:
        name, separator, source = given.partition("=")
        run = read_run(_place(source if separator else given))
        runs.append(dataclasses.replace(run, name=name if separator else run.name or Path(given).name))
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two runs are called {twice[0]!r}, the tag in their files; write NAME=RUN to tell them apart")
    baseline = options.baseline or names[0]
    if baseline not in names:
        raise ConfigError(f"--baseline is {baseline!r}, and the runs are {', '.join(names)}; name one of them")
    qrels = {query_id: grades for query_id, grades in read_qrels(_place(options.qrels)).items() if grades}
    known = {query_id for run in runs for query_id in run.rankings}
    if not known & set(qrels):
        raise ConfigError(
            f"no run has a query that {options.qrels} judges (such as {next(iter(qrels), 'none')!r}); check that they "
            "belong together"
        )
    found = compare_runs(runs, qrels, config, lambda measure, scores: baseline)
    console = output_console()
    console.print(console_table(found, f"{found.queries} judged queries, against {baseline}"))
    for row in found.rows:
        if row.missing:
            shown = ", ".join(row.missing[:5]) + (", …" if len(row.missing) > 5 else "")
            console.print(f"{row.name} lacks {len(row.missing)} judged queries, which count 0: {shown}", soft_wrap=True)
    if folder is not None:
        origin = {"qrels": options.qrels, "runs": dict(zip(names, options.runs, strict=True))}
        (folder / "comparison.json").write_bytes(comparison_json(found, origin))
        (folder / "comparison.html").write_bytes(comparison_page(found, "Comparison of runs", f"Baseline: {baseline}."))
        console.print(f"report   {folder}/comparison.html", soft_wrap=True, highlight=False)
    return 0


def _place(source: str) -> str:
    return source if "://" in source else str(Path(source).expanduser().resolve())
