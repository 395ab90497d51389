"""Encoding passages on one GPU: `python benchmarks/encoder_gpu.py --out benchmarks/results/NAME.json`. Linux only.

raydistill's encoder beside sentence_transformers.SparseEncoder on the same models and real passages, in float32 and in
bfloat16, each at the fastest of several batch sizes; then the Ray Data stage beside a loop in one process, in bfloat16. One
process measures both encoders, a process of its own each the stage and the loop. compute_share tells what part of the time
the GPU computed, by its own clock.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from processes import CHECKOUT, in_a_process, machine

PAIRS = {"fp32": ("raydistill", "sentence-transformers"), "bf16": ("raydistill bf16", "sentence-transformers bf16")}
TRIAL_PASSAGES = 1024
STAGE_MODEL, STAGE_PRECISION = "BERT base", "bf16"
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "sentence-transformers", "numpy")


def main() -> int:
    """Run everything, print tables, store the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=CHECKOUT.parent / "shared" / "data" / "mtrag" / "clapnq")
    parser.add_argument("--passages", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--without-stage", action="store_true", help="leave the Ray Data stage out")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    from encoder_inputs import GPU_MODELS, prepare

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, options.data, options.passages, GPU_MODELS)
        result: dict[str, Any] = {
            "machine": machine("cuda"),
            "versions": {name: version(name) for name in PACKAGES},
            "settings": {"passages": options.passages, "trial_passages": TRIAL_PASSAGES, "threads": options.threads},
            "runs": [_compared(folder, model, precision) for model in GPU_MODELS for precision in PAIRS],
        }
        if not options.without_stage:
            result["stage"] = _stage(folder, result["runs"], options.threads)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _compared(folder: Path, model: str, precision: str) -> dict[str, Any]:
    """Measure both encoders on a model and print how they compare."""
    import torch
    from encoder_variants import best_size, largest_difference, measure

    print(f"{model}, {precision}\n{'':28}{'batch':>8}{'passages/s':>12}{'device GiB':>12}{'terms':>8}")
    measured: dict[str, dict[str, Any]] = {}
    files = {name: str(folder / f"{place}.npz") for place, name in enumerate(PAIRS[precision])}
    for name, file in files.items():
        torch.cuda.empty_cache()
        trial = best_size(name, folder, model, TRIAL_PASSAGES, "cuda")
        torch.cuda.empty_cache()
        found = measure(name, folder, model, trial["size"], file, "cuda")
        measured[name] = {**trial, **found}
        print(
            f"{name:28}{trial['size']:8}{found['passages_per_second']:12.0f}{found['peak_device'] / 2**30:12.2f}"
            f"{found['terms_a_passage']:8.0f}",
            flush=True,
        )
    ours, theirs = measured.values()
    result = {
        "model": model,
        "precision": precision,
        "variants": measured,
        "speed_ratio": ours["passages_per_second"] / theirs["passages_per_second"],
        "memory_ratio": ours["peak_device"] / theirs["peak_device"],
        "largest_difference": largest_difference(*files.values()),
    }
    print(
        f"{result['speed_ratio']:.2f} times the passages/s in {result['memory_ratio']:.2f} of the device memory, vectors "
        f"within {result['largest_difference']:.1e}; the GPU computes {ours['compute_share']:.0%} of our time",
        flush=True,
    )
    return result


def _stage(folder: Path, runs: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    """Measure the Ray Data stage with one actor on the GPU between two loops, and print the ratio."""
    run = next(run for run in runs if (run["model"], run["precision"]) == (STAGE_MODEL, STAGE_PRECISION))
    size = run["variants"][PAIRS[STAGE_PRECISION][0]]["size"]
    work = {"folder": str(folder), "model": STAGE_MODEL, "size": size, "precision": STAGE_PRECISION}
    loops = [_call("loop", threads, device="cuda", **work)["passages_per_second"]]
    with tempfile.TemporaryDirectory() as root:
        found = _call("stage", threads, cpus=threads, gpus=1, root=root, **work)
    loops.append(_call("loop", threads, device="cuda", **work)["passages_per_second"])
    ratio = found["passages_per_second"] / (sum(loops) / len(loops))
    print(
        f"Ray Data stage, {STAGE_MODEL}, {STAGE_PRECISION}: {found['passages_per_second']:.0f} passages/s once its actor is "
        f"up ({found['start_up']:.0f} s), loop {loops[0]:.0f} before and {loops[1]:.0f} after: ratio {ratio:.3f}",
        flush=True,
    )
    return {"stage": found, "loops": loops, "ratio": ratio}


def _call(function: str, threads: int, **arguments: Any) -> dict[str, Any]:
    code = (
        f"import json, pathlib, encoder_variants; found = json.loads({json.dumps(arguments)!r}); "
        "found['folder'] = pathlib.Path(found['folder']); "
        f"print(json.dumps(encoder_variants.{function}(**found)))"
    )
    return dict(json.loads(in_a_process(["-c", code], threads).splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
