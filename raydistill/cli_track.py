"""The command that sends results to an experiment tracker; thin, like `cli`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_track_command(commands: Any) -> None:
    """Add track to an argparse sub-parsers object."""
    parser = commands.add_parser("track", help="send a report's or comparison's numbers to MLflow, W&B or TensorBoard")
    parser.add_argument("results", metavar="FILE", help="report.json or comparison.json, a path or s3://")
    parser.add_argument(
        "--mlflow", metavar="URI", help="tracking server; user and password or token come from the environment"
    )
    parser.add_argument("--experiment", default="raydistill", help="the MLflow experiment (default: raydistill)")
    parser.add_argument("--wandb", metavar="PROJECT", help="W&B project; WANDB_API_KEY and WANDB_MODE are read by wandb")
    parser.add_argument("--tensorboard", metavar="FOLDER", help="write event files there, a sub-folder a system")
    parser.set_defaults(command=_track)


def _track(options: argparse.Namespace) -> int:
    from raydistill.config import MlflowConfig
    from raydistill.config_loading import build_section
    from raydistill.errors import ConfigError
    from raydistill.progress import output_console
    from raydistill.tracking.results import read_results
    from raydistill.tracking.trackers import to_mlflow, to_tensorboard, to_wandb

    if not (options.mlflow or options.wandb or options.tensorboard):
        raise ConfigError("nowhere to send the results; give --mlflow URI, --wandb PROJECT or --tensorboard FOLDER")
    if options.mlflow:  # Refuses an address with a password in it.
        build_section(MlflowConfig, {"uri": options.mlflow, "experiment": options.experiment}, [], "--mlflow")
    uri = options.results if "://" in options.results else str(Path(options.results).expanduser().resolve())
    results = read_results(uri)
    sent = []
    if options.tensorboard:
        sent.append(("tensorboard", str(to_tensorboard(results, Path(options.tensorboard).expanduser().resolve()))))
    if options.mlflow:
        sent.append(("mlflow", f"run {to_mlflow(results, options.mlflow, options.experiment)}"))
    if options.wandb:
        sent.append(("wandb", to_wandb(results, options.wandb)))
    for tracker, place in sent:
        output_console().print(f"{tracker:<12} {place}", highlight=False, soft_wrap=True, markup=False)
    return 0
