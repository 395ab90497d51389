"""A small demo run as a command line: the real pipeline on a generated world, in about a minute."""

from __future__ import annotations

import os
from pathlib import Path

from raydistill.demo.run import CONFIG
from raydistill.demo.world import WorldSize, generate

SIZE = WorldSize(entities=40, train_conversations=24, test_conversations=8)
CHECKOUT = Path(__file__).resolve().parent.parent


def small_world(folder: Path) -> Path:
    """Generate the data once into `folder` and return it."""
    if not (folder / "corpus.jsonl").exists():
        generate(11, folder, SIZE)
    return folder


def arguments(data: Path, root: str, *overrides: str) -> list[str]:
    """Return the arguments of a command that runs the chain, or a stage, on the small world."""
    fast = ["index.passages_per_segment=300", "score.queries_per_part=64", "train.epochs=2", "evaluate.bootstrap_samples=50"]
    places = [f"vars.data={data}", f"vars.root={root}", "vars.run=small"]
    return ["--config", str(CONFIG), *places, *fast, *overrides]


def environment() -> dict[str, str]:
    """Return the environment for processes that import the checkout from anywhere."""
    path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
