"""Rewriting with the transformers engine on one GPU: `python benchmarks/teachers_gpu.py --out benchmarks/results/NAME.json`.

The model has the shape of Llama 3.2 1B (1.2 G parameters) with random weights in bfloat16, which is all that speed asks for;
the prompts and the habit that the engine is compared with are those of `teachers.py`. The engine is measured with several
bounds on the padded prompt tokens of a batch. Utilisation is told twice: as the driver does (the share of time in which any
kernel ran), and as the products that prompts and answers ask for (2 FLOP a parameter and token) over the rate of a large
product measured beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import teachers
from processes import CHECKOUT, machine

SHAPE = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
HABIT = "habit"
BATCH_TOKENS = (8192, 32_768, 131_072)
SAMPLED_EVERY_S = 0.1
PACKAGES = ("torch", "transformers", "tokenizers")


def main() -> int:
    """Measure everything, print a table, store the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=CHECKOUT.parent / "shared" / "data" / "mtrag")
    parser.add_argument("--prompts", type=int, default=teachers.PROMPTS)
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=list(BATCH_TOKENS))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "machine": machine("cuda"),
        "versions": {name: version(name) for name in PACKAGES},
        "settings": {"prompts": options.prompts, "new_tokens": teachers.NEW_TOKENS, "shape": SHAPE},
        "measured": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        parameters = teachers.prepare(folder, str(options.data), options.prompts, SHAPE, "cuda")
        result |= {"parameters": parameters, "product_tflops": _product_rate()}
        print(f"{parameters / 1e9:.2f} G parameters, a large product runs at {result['product_tflops']:.0f} TFLOP/s")
        print(f"{'':24}{'prompts/s':>10}{'against':>9}{'tokens/s':>10}{'busy':>7}{'of the product rate':>21}", flush=True)
        answers = _measured(result, HABIT, lambda: teachers.habit(folder, device="cuda"), options.out, None)
        for bound in options.batch_tokens:
            run = partial(teachers.bare, folder, device="cuda", batch_tokens=bound)
            _measured(result, f"engine, {bound} tokens", run, options.out, answers)
    return 0


def _measured(
    result: dict[str, Any], name: str, work: Callable[[], dict[str, Any]], path: Path | None, answers: list[str] | None
) -> list[str]:
    """Measure some work, print it, store all that was measured so far, and return the answers.

    Args:
        answers: those of the habit; None where it is what is measured.
    """
    found = _watched(work)
    texts: list[str] = found.pop("texts")
    result["measured"][name] = found
    found["against_habit"] = found["prompts_per_second"] / result["measured"][HABIT]["prompts_per_second"]
    line = f"{name:24}{found['prompts_per_second']:10.1f}{found['against_habit']:8.1f}x"
    if answers is not None:
        found["same_answers"] = sum(map(str.__eq__, texts, answers)) / len(texts)
        tokens = found["tokens_a_prompt"] + found["tokens_an_answer"]
        rate = tokens * found["prompts_per_second"] * 2 * result["parameters"]
        found["product_share"] = rate / (result["product_tflops"] * 1e12)
        found["answer_tokens_per_second"] = found["tokens_an_answer"] * found["prompts_per_second"]
        line += f"{found['answer_tokens_per_second']:10.0f}{found['busy']:7.0%}{found['product_share']:21.1%}"
    print(line, flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    return texts


def _watched(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run some work and add `busy`, the mean utilisation that the driver reported meanwhile, and `peak_device`, bytes."""
    import torch

    seen: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLED_EVERY_S):
            seen.append(torch.cuda.utilization())

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    found = work()
    ended.set()
    watcher.join()
    return {**found, "busy": statistics.mean(seen) / 100 if seen else None, "peak_device": torch.cuda.max_memory_allocated()}


def _product_rate() -> float:
    """Return TFLOP/s of a large bfloat16 product."""
    import torch

    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(3):
        square @ square
    begin.record()
    for _ in range(10):
        square @ square
    end.record()
    end.synchronize()
    return 10 * 2 * 8192**3 / (begin.elapsed_time(end) / 1000) / 1e12


if __name__ == "__main__":
    sys.exit(main())
