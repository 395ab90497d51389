"""Encoding passages on one GPU: `python benchmarks/encoder_gpu.py --out benchmarks/results/NAME.json`. Linux only.

raydistill's encoder beside sentence_transformers.SparseEncoder on the same models and real passages, in float32 and in
bfloat16, each at the fastest of several batch sizes; then the Ray Data stage beside a loop in one process, in bfloat16, on
the same passages many times over: with one actor on the GPU, and with two that share it, of which one stores while the other
computes. One process measures both encoders, a process of its own each the stage and the loop. compute_share tells what part
of the time the GPU computed, by its own clock.
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

from encoder_inputs import GPU_MODELS, SHAPES, prepare, write_passages
from processes import CHECKOUT, in_a_process, machine

PAIRS = {"fp32": ("raydistill", "sentence-transformers"), "bf16": ("raydistill bf16", "sentence-transformers bf16")}
TRIAL_PASSAGES = 1024
STAGE_MODEL, STAGE_PRECISION = "BERT base", "bf16"
STAGE_TOKENS, STAGE_TIMES, STAGE_ACTORS = 32_768, 12, (1, 2)
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "sentence-transformers", "numpy")


def main() -> int:
    """Run everything, print tables, store the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=CHECKOUT.parent / "shared" / "data" / "mtrag" / "clapnq")
    parser.add_argument("--passages", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--models", nargs="+", choices=tuple(SHAPES), default=list(GPU_MODELS))
    parser.add_argument("--without-stage", action="store_true", help="leave the Ray Data stage out")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, options.data, options.passages, {*options.models, STAGE_MODEL})
        result: dict[str, Any] = {
            "machine": machine("cuda"),
            "versions": {name: version(name) for name in PACKAGES},
            "settings": {"passages": options.passages, "trial_passages": TRIAL_PASSAGES, "threads": options.threads},
            "runs": [],
        }
        for model in options.models:
            for precision in PAIRS:
                result["runs"].append(_compared(folder, model, precision))
                _store(result, options.out)
        if not options.without_stage:
            write_passages(folder, options.data, options.passages, STAGE_TIMES)
            result["stage"] = _stage(folder, options.threads)
            _store(result, options.out)
    return 0


def _store(result: dict[str, Any], path: Path | None) -> None:
    """Write what was measured so far."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


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


def _stage(folder: Path, threads: int) -> dict[str, Any]:
    """Measure the Ray Data stage between two loops, and print the ratios."""
    work = {"folder": str(folder), "model": STAGE_MODEL, "size": STAGE_TOKENS, "precision": STAGE_PRECISION}
    loops = [_call("loop", threads, device="cuda", **work)["passages_per_second"]]
    stages = []
    for actors in STAGE_ACTORS:
        share = {"actors": actors, "cpus": threads // actors, "gpus": 1 / actors}
        with tempfile.TemporaryDirectory() as root:
            stages.append(_call("stage", threads, root=root, **share, **work))
    loops.append(_call("loop", threads, device="cuda", **work)["passages_per_second"])
    for found in stages:
        found["ratio"] = found["passages_per_second"] / (sum(loops) / len(loops))
        print(
            f"Ray Data stage, {STAGE_MODEL}, {STAGE_PRECISION}, {found['actors']} actors on the GPU: "
            f"{found['passages_per_second']:.0f} passages/s once they are up ({found['start_up']:.0f} s), loop "
            f"{loops[0]:.0f} before and {loops[1]:.0f} after: ratio {found['ratio']:.3f}",
            flush=True,
        )
    return {"stages": stages, "loops": loops, "batch_tokens": STAGE_TOKENS}


def _call(function: str, threads: int, **arguments: Any) -> dict[str, Any]:
    code = (
        f"import json, pathlib, encoder_variants; found = json.loads({json.dumps(arguments)!r}); "
        "found['folder'] = pathlib.Path(found['folder']); "
        f"print(json.dumps(encoder_variants.{function}(**found)))"
    )
    return dict(json.loads(in_a_process(["-c", code], threads).splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
