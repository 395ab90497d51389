"""Makes the models that the demo ships: `python -m raydistill.demo.train_models [--only NAME] [--folder FOLDER]`.

Seeded, CPU, one thread a model. What was trained, for how long and how good it became is written beside the models.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from raydistill.demo.tokenizer import make_tokenizer
from raydistill.demo.train_encoder import EncoderShape, lexical_fidelity, train_encoder, warm_up
from raydistill.demo.train_teachers import TeacherShape, exact_match, polish_teacher, train_teacher

MODELS = Path(__file__).with_name("models")
TEACHERS = (
    TeacherShape("teacher-large", layers=4, width=128, heads=4, steps=1500, polish_steps=900, seed=3, tokens=1024),
    TeacherShape("teacher-small", layers=2, width=128, heads=4, steps=1200, polish_steps=900, seed=2),
)
ENCODER = EncoderShape()

CARD = """---
license: apache-2.0
---
# Models of the raydistill demo

Made with the code of `python -m raydistill.demo.train_models` (in the repository) from nothing but text that
`raydistill.demo.world` and `raydistill.demo.dialogue` generate; no third-party text or weights. Licence: Apache-2.0.

They know one small artificial language. They are there so that `raydistill demo` runs every stage of the pipeline offline,
with language models that really generate and an encoder that really learns; they are of no use outside of it.

- `teacher-*`: Llama-style causal language models; prompt `plain-v1`, then the self-contained question, then `[SEP]`.
  Quality: share of the turns of a held-out world (other names, facts, conversations) that are rewritten exactly right.
- `encoder`: ModernBERT-style masked language model, the student's starting point. Lexical warm-up makes its SPLADE
  activations the words of the text itself; it has seen no rewrite. Quality: share of a held-out text's distinct words
  among its activations, and the number of active terms per distinct word.

These files were trained phase by phase (teachers: curriculum, then polish; encoder: masked LM, then warm-up), each phase
started from the half-precision weights of the one before, with the functions that the script calls. The script has not
been run from end to end in one go, and the lexical loss of the encoder's first phase then covered half of each batch
instead of all of it: a fresh run gives models like these, not the same bytes. Two cores were shared with other work,
hence the distance between wall and CPU seconds.

Training worlds have seeds from 1,000,000 (teachers) and 2,000,000 (encoder) on, the held-out world 900,000; the demo's
seeds lie below.

| model | parameters | shape | steps | seconds (wall, CPU) | quality |
|---|---|---|---|---|---|
"""


def train_models(names: list[str], folder: Path) -> None:
    """Train the named models into `folder` and write what came out of it."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    for shape in TEACHERS:
        if shape.name in names:
            tokenizer = make_tokenizer("causal")
            started = (time.monotonic(), time.process_time())
            model = polish_teacher(train_teacher(shape, tokenizer, _say), shape, tokenizer, _say)
            seconds = _seconds(started)
            _save(model, tokenizer, folder / shape.name)
            loaded = _loaded(folder / shape.name)
            _record(folder, shape.name, model, asdict(shape), seconds, {"exact_match": exact_match(loaded, tokenizer)})
    if "encoder" in names:
        tokenizer = make_tokenizer("encoder")
        started = (time.monotonic(), time.process_time())
        model = warm_up(train_encoder(ENCODER, tokenizer, _say), ENCODER, tokenizer, _say)
        seconds = _seconds(started)
        _save(model, tokenizer, folder / "encoder")
        _record(folder, "encoder", model, asdict(ENCODER), seconds, lexical_fidelity(model, tokenizer))
    _write_card(folder)


def _say(line: str) -> None:
    print(line, flush=True)


def _seconds(started: tuple[float, float]) -> dict[str, int]:
    return {"wall": round(time.monotonic() - started[0]), "cpu": round(time.process_time() - started[1])}


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights in half precision: tiny models keep their quality, the package stays small."""
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)


def _loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _record(
    folder: Path, name: str, model: Any, shape: dict[str, Any], seconds: dict[str, int], quality: dict[str, float]
) -> None:
    record = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "shape": shape,
        "seconds": seconds,
        "quality": {measure: round(value, 4) for measure, value in quality.items()},
        "torch": torch.__version__,
    }
    (folder / name / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _say(f"{name}: {record}")


def _write_card(folder: Path) -> None:
    rows = []
    for name in (*(shape.name for shape in TEACHERS), "encoder"):
        path = folder / name / "training.json"
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            shape, seconds = record["shape"], record["seconds"]
            quality = ", ".join(f"{measure} {value}" for measure, value in record["quality"].items())
            steps = shape["steps"] + shape.get("polish_steps", 0) + shape.get("warm_up_steps", 0)
            rows.append(
                f"| {name} | {record['parameters']:,} | {shape['layers']} layers x {shape['width']}, seed {shape['seed']} "
                f"| {steps} x {shape['tokens']} tokens | {seconds['wall']}, {seconds['cpu']} | {quality} |\n"
            )
    (folder / "README.md").write_text(CARD + "".join(rows), encoding="utf-8")


def main() -> None:
    """Read the arguments and train."""
    names = [*(shape.name for shape in TEACHERS), "encoder"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=names, action="append", help="train this model alone; may be repeated")
    parser.add_argument("--folder", type=Path, default=MODELS, help="where the models go (default: the package's own)")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    train_models(options.only or names, options.folder)


if __name__ == "__main__":
    main()
