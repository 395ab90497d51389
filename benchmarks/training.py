"""Training speed and memory in one run on one machine: `python benchmarks/training.py --out benchmarks/results/NAME.json`.

Compares raydistill (passages read from the index) with two recipes that encode the passages at every step; see
`training_variants` for what each does and `training_inputs` for what all read. Every measurement is a process of its own.
The recipes that encode passages hold [texts, tokens, vocabulary] logits, so their micro-batch decides their memory: each
is tried at several sizes within `--memory-bound`, and measured at the fastest one. Memory is compared twice: each at its
fastest size, and all at the same number of queries a pass, up to what the bound allows. (The published recipes encode
their whole batch in one pass, which takes more than this bound.) Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from processes import CHECKOUT, in_a_process, machine
from training_inputs import BATCH, MODEL, NEGATIVES, PASSAGE_TOKENS, TEXT, batch_size
from training_variants import VARIANTS, measure

OURS = "raydistill"
MICRO_BATCHES = (1, 2, 3, 4, 6, 12)
STEPS = 6
PACKAGES = ("raydistill", "torch", "transformers", "sentence-transformers", "deepspeed", "ray")


def main() -> int:
    """Run all variants, print a table, store the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=CHECKOUT.parent / "shared" / "data" / "mtrag" / "clapnq")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1], help="compute threads; one table each")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--memory-bound", type=float, default=12.0, help="GiB a variant may use (on cuda: of the device)")
    parser.add_argument("--batch", type=int, default=BATCH, help="queries an optimizer step")
    parser.add_argument(
        "--recipe-micro-batches", type=int, nargs="+", default=list(MICRO_BATCHES), help="sizes at which recipes are tried"
    )
    sizes = [BATCH, *(size for size in reversed(MICRO_BATCHES) if size < BATCH)]
    parser.add_argument("--micro-batches", type=int, nargs="+", default=sizes, help="of raydistill, each measured")
    parser.add_argument(
        "--measured-steps", type=int, default=2, help="batches measured; raydistill measures three times more"
    )
    parser.add_argument("--trial-passes", type=int, default=1, help="passes measured of a recipe at each size that is tried")
    parser.add_argument("--inputs", type=Path, help="folder of inputs, made when missing (default: a temporary one)")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(**{**json.loads(options.worker), "folder": options.inputs})))
        return 0
    versions = {name: version(name) for name in PACKAGES}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.inputs or Path(temporary)
        if not (folder / "batches.json").is_file():
            in_a_process(["-c", f"import training_inputs; from pathlib import Path; {_preparation(folder, options)}"], 2)
        if batch_size(folder) != options.batch:
            raise SystemExit(f"{folder} is for batches of {batch_size(folder)}, not {options.batch}; give another --inputs")
        runs = [_compared(options, folder, threads) for threads in options.threads]
    result = {
        "machine": machine(options.device),
        "versions": versions,
        "settings": {
            "model": MODEL,
            "queries_a_step": options.batch,
            "negatives": NEGATIVES,
            "passage_tokens": PASSAGE_TOKENS,
            "query_tokens": TEXT["max_tokens"],
            "device": options.device,
            "precision": options.precision,
            "memory_bound_gib": options.memory_bound,
        },
        "runs": runs,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _preparation(folder: Path, options: argparse.Namespace) -> str:
    return f"training_inputs.prepare(Path({str(folder)!r}), Path({str(options.data)!r}), {STEPS}, {options.batch})"


def _compared(options: argparse.Namespace, folder: Path, threads: int) -> dict[str, Any]:
    """Measure every variant with a number of threads and print how they compare."""
    measured = {}
    for name in options.variants:
        if name == OURS:
            # Three times as many batches: they are quick, and one more warms up the reading.
            queries = (options.batch, 3 * options.batch * options.measured_steps)
            for micro in options.micro_batches:
                found = _run(name, options, folder, threads, micro, queries)
                measured[f"{OURS} {micro}"] = {"micro_batch": micro, **found}
        else:
            measured[name] = _at_its_best(name, options, folder, threads)
    print(f"{threads} threads, {options.device}, {options.precision}")
    print(f"{'':24}{'micro-batch':>12}{'queries/s':>10}{'peak GiB':>10}{'above imports':>15}   loss of the first batch")
    for name, each in measured.items():
        for size, trial in each.get("tried", {}).items():
            sizes = f"{'':10}{_gib(_memory(trial, options)):>15}"
            print(f"{name + ', tried':24}{size:12}{trial['queries_per_second']:10.3f}{sizes}")
        sizes = f"{_gib(each['peak']):>10}{_gib(_memory(each, options)):>15}"
        print(f"{name:24}{each['micro_batch']:12}{each['queries_per_second']:10.3f}{sizes}   {each['first_loss']}")
    ratios = {
        f"{ours} against {name}": {
            "speed": measured[ours]["queries_per_second"] / each["queries_per_second"],
            "memory": _memory(measured[ours], options) / _memory(each, options),
            "memory_with_imports": measured[ours]["peak"] / each["peak"],
        }
        for ours in measured
        for name, each in measured.items()
        if ours.startswith(OURS) and not name.startswith(OURS)
    }
    alike = _at_equal_sizes(measured, options)
    for name, each in (ratios | alike).items():
        memory = f"{each['memory']:.2f} of the memory above imports, {each['memory_with_imports']:.2f} with them"
        print(f"{name}: {each['speed']:.1f} times the queries/s, {memory}")
    return {"threads": threads, "variants": measured, "ratios": ratios, "ratios_at_equal_micro_batch": alike}


def _at_equal_sizes(measured: dict[str, Any], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Compare raydistill with each recipe where both encode the same number of queries a pass."""
    ours = {each["micro_batch"]: each for name, each in measured.items() if name.startswith(OURS)}
    return {
        f"{size} queries a pass, {OURS} against {name}": {
            "speed": ours[size]["queries_per_second"] / trial["queries_per_second"],
            "memory": _memory(ours[size], options) / _memory(trial, options),
            "memory_with_imports": ours[size]["peak"] / trial["peak"],
        }
        for name, each in measured.items()
        for size, trial in each.get("tried", {}).items()
        if size in ours
    }


def _at_its_best(name: str, options: argparse.Namespace, folder: Path, threads: int) -> dict[str, Any]:
    """Measure a variant at its fastest micro-batch within the memory bound, with the trials that chose it."""
    tried: dict[int, dict[str, Any]] = {}
    bound = options.memory_bound * 2**30
    for micro in options.recipe_micro_batches:
        # Memory grows with the size: one that cannot fit is not tried.
        if any(_memory(each, options) * micro / size > bound for size, each in tried.items() if size * 2 >= micro):
            break
        tried[micro] = _run(name, options, folder, threads, micro, (micro, options.trial_passes * micro))
        print(f"  {name}, micro-batch {micro}: {tried[micro]['queries_per_second']:.3f} queries/s", file=sys.stderr)
    best = max(tried, key=lambda size: tried[size]["queries_per_second"])
    result = _run(name, options, folder, threads, best, (best, options.batch * options.measured_steps))
    kept = ("queries_per_second", "peak", "above_baseline", "peak_device")
    trials = {size: {key: each[key] for key in kept if key in each} for size, each in tried.items()}
    return {"micro_batch": best, **result, "tried": trials}


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def _memory(result: dict[str, Any], options: argparse.Namespace) -> float:
    return float(result["peak_device" if options.device == "cuda" else "above_baseline"])


def _run(
    name: str, options: argparse.Namespace, folder: Path, threads: int, micro: int, queries: tuple[int, int]
) -> dict[str, Any]:
    work = {
        "variant": name,
        "device": options.device,
        "precision": options.precision,
        "micro": micro,
        "queries": queries,
    }
    script = str(Path(__file__).resolve())
    answer = in_a_process([script, "--inputs", str(folder), "--worker", json.dumps(work)], threads)
    return dict(json.loads(answer.splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
