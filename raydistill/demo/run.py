"""The demo's entry: generate a seed's world and configure the real pipeline for it. Running the pipeline is the caller's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from raydistill.config import DistillConfig
from raydistill.config_loading import load_config
from raydistill.demo.world import WorldSize, generate

CONFIG = Path(__file__).with_name("demo.yaml")  # jobs/configs/demo.yaml links to it


def demo_config(folder: Path, root: str, seed: int) -> DistillConfig:
    """Return the demo's configuration for the data in `folder`, with results under the run root `root`."""
    variables = {"data": folder.expanduser().resolve(), "root": root, "run": f"demo-seed-{seed}"}
    return load_config(CONFIG, [f"vars.{name}={json.dumps(str(value))}" for name, value in variables.items()])


def prepare_demo(folder: Path, root: str, seed: int, size: WorldSize | None = None) -> DistillConfig:
    """Write the world of a seed into `folder` (the same bytes for the same seed) and return the configuration to run.

    Args:
        folder: for corpus.jsonl, conversations.jsonl and qrels.tsv; made when missing, left alone when it holds this world.
        root: run root, a URI or absolute path.
        seed: another seed gives other names, facts, passages and conversations.
        size: how much to generate; default the demo's.
    """
    size = size or WorldSize()
    wanted = {"seed": seed, "size": asdict(size), "code": _code_fingerprint()}
    marker = folder / "world.json"
    if not marker.is_file() or json.loads(marker.read_text(encoding="utf-8")) != wanted:
        generate(seed, folder, size)
        marker.write_text(json.dumps(wanted), encoding="utf-8")
    return demo_config(folder, root, seed)


def _code_fingerprint() -> str:
    """Return a hash of the generator's own source, so that files of an older release are not taken for this one's."""
    digest = hashlib.sha256()
    for name in ("kinds.py", "wording.py", "world.py", "dialogue.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()
