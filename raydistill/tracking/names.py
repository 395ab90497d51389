"""What both ways of tracking, training as it goes and finished results, have in common: names, and MLflow's experiments."""

from __future__ import annotations

import re
from typing import Any

# What both MLflow and TensorBoard take in a name.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-/]")


def plain_name(name: str) -> str:
    """Return a name that every tracker takes: nDCG@10 becomes nDCG_at_10."""
    return _NOT_IN_NAMES.sub("_", name.replace("@", "_at_"))


def open_experiment(uri: str, experiment: str) -> tuple[Any, str]:
    """Return a client of an MLflow server and the id of an experiment, which is made where there is none of the name."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    return client, client.create_experiment(experiment) if found is None else found.experiment_id
