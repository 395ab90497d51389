"""The log of a run's stages in its run root: which have run, how long each took, and which were done already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from raydistill.storage.store import open_store


def read_stages(root: str, prefix: str) -> list[dict[str, Any]]:
    """Return {"stage", "seconds", "skipped"} a stage of the run under a key prefix, in order; nothing where none ran."""
    store, key = open_store(root), f"{prefix}/stages.json"
    return list(json.loads(store.read(key))) if store.info(key) else []


def log_stage(root: str, prefix: str, stage: str, seconds: float, skipped: bool, order: Sequence[str]) -> None:
    """Put a stage into the log; a skipped one keeps the time it took when it ran.

    Args:
        order: the run's stages. One that was once asked for more rounds leaves their records; those go.
    """
    before = {record["stage"]: record for record in read_stages(root, prefix)}
    if skipped and stage in before:
        seconds = before[stage]["seconds"]
    before[stage] = {"stage": stage, "seconds": round(seconds, 2), "skipped": skipped}
    records = [before[name] for name in order if name in before]
    open_store(root).replace(f"{prefix}/stages.json", json.dumps(records, indent=1).encode())
