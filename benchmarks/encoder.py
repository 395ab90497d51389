"""Speed and memory of encoding passages, in one run: `python benchmarks/encoder.py --out benchmarks/results/NAME.json`.

Compares raydistill's encoder with sentence_transformers.SparseEncoder on the same models and the same real passages, their
lengths as they are, and the Ray Data stage with a loop in one process; `encoder_variants` says what each does,
`encoder_inputs` what all read. Every measurement is a process of its own. Both encoders are tried at several batch sizes on
some of the passages, and measured on all of them at the fastest. Results are stored as they come: the same command goes on
where it was stopped, and further models or threads join those in the file. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from encoder_inputs import ACTIVE_SHARE, MAX_TOKENS, MODELS, SHAPE, TEXTS
from encoder_variants import TRIED, largest_difference
from processes import CHECKOUT, in_a_process, machine

OURS, THEIRS, HALF = "raydistill", "sentence-transformers", "raydistill bf16"
STAGE_MODEL = "4 layers"
FLOAT32_PASSAGES = 100
PACKAGES = ("raydistill", "torch", "transformers", "tokenizers", "sentence-transformers", "ray", "numpy")


def main() -> int:
    """Run everything, print tables, store the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=CHECKOUT.parent / "shared" / "data" / "mtrag" / "clapnq")
    parser.add_argument("--passages", type=int, default=5000)
    parser.add_argument("--trial-passages", type=int, default=128, help="passages on which batch sizes are tried")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="compute threads; one table each")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--without-stage", action="store_true", help="leave the Ray Data stage out")
    parser.add_argument("--inputs", type=Path, help="folder of inputs, made when missing (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    settings = {
        "passages": options.passages,
        "trial_passages": options.trial_passages,
        "shape": SHAPE,
        "max_tokens": MAX_TOKENS,
        "active_share": ACTIVE_SHARE,
    }
    versions = {name: version(name) for name in PACKAGES}
    results = _Results(options.out, {"machine": machine(), "versions": versions, "settings": settings})
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.inputs or Path(temporary)
        if not (folder / TEXTS).is_file():
            _call("encoder_inputs", "prepare", 2, folder=folder, data=options.data, passages=options.passages)
        passages = len(json.loads((folder / TEXTS).read_text(encoding="utf-8")))
        if passages != options.passages:
            raise SystemExit(
                f"{folder} holds {passages} passages, not {options.passages}; give another --inputs or --passages"
            )
        for threads in options.threads:
            for model in options.models:
                if not results.has("runs", model, threads):
                    results.add("runs", model, threads, _compared(model, folder, threads, options.trial_passages))
        for model in options.models:
            if not results.has("float32", model, options.threads[0]):
                results.add(
                    "float32", model, options.threads[0], _noise(model, folder, options.threads[0], FLOAT32_PASSAGES)
                )
        for threads in () if options.without_stage else options.threads:
            if not results.has("stages", STAGE_MODEL, threads):
                results.add(
                    "stages", STAGE_MODEL, threads, _stage(folder, threads, results.of("runs", STAGE_MODEL, threads))
                )
            if threads > 1 and not results.has("spread", STAGE_MODEL, threads):
                results.add(
                    "spread", STAGE_MODEL, threads, _spread(folder, threads, results.of("stages", STAGE_MODEL, threads))
                )
    return 0


class _Results:
    """What was measured so far, in a file that is written anew after every measurement."""

    def __init__(self, path: Path | None, origin: dict[str, Any]) -> None:
        self._path = path
        self._content: dict[str, Any] = {**origin, "runs": [], "float32": [], "stages": [], "spread": []}
        if path is not None and path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            different = [name for name, value in origin.items() if found.get(name) != json.loads(json.dumps(value))]
            if different:
                raise SystemExit(
                    f"{path} was measured with other {' and '.join(different)}; give another --out or remove it"
                )
            self._content |= found

    def of(self, kind: str, model: str, threads: int) -> dict[str, Any] | None:
        wanted = [each for each in self._content[kind] if (each["model"], each["threads"]) == (model, threads)]
        return wanted[0] if wanted else None

    def has(self, kind: str, model: str, threads: int) -> bool:
        return self.of(kind, model, threads) is not None

    def add(self, kind: str, model: str, threads: int, measured: dict[str, Any]) -> None:
        self._content[kind].append({**measured, "model": model, "threads": threads})
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")


def _compared(model: str, folder: Path, threads: int, trial_passages: int) -> dict[str, Any]:
    """Measure both encoders, and ours in bf16 on the trial passages only; print how they compare."""
    measured: dict[str, dict[str, Any]] = {}
    work = {"folder": folder, "model": model}
    tried = {
        variant: _call("encoder_variants", "best_size", threads, variant=variant, passages=trial_passages, **work)
        for variant in TRIED
    }
    with tempfile.TemporaryDirectory() as temporary:
        files = {name: str(Path(temporary) / f"{number}.npz") for number, name in enumerate((OURS, THEIRS))}
        for name, file in files.items():
            size = tried[name]["size"]
            measured[name] = {
                "size": size,
                **_call("encoder_variants", "measure", threads, variant=name, size=size, vectors=file, **work),
            }
        difference = largest_difference(*files.values())
    ours, theirs = measured[OURS], measured[THEIRS]
    half = max(tried[HALF]["tried"].values()) / max(tried[OURS]["tried"].values())
    result = {
        "variants": measured,
        "tried": {name: each["tried"] for name, each in tried.items()},
        "speed_ratio": ours["passages_per_second"] / theirs["passages_per_second"],
        "memory_ratio": ours["above_imports"] / theirs["above_imports"],
        "largest_difference": difference,
        "bf16_speed_ratio": half,
    }
    print(f"{model}, {threads} thread{'s' if threads > 1 else ''}")
    print(f"{'':24}{'batch':>8}{'passages/s':>12}{'peak GiB':>10}{'above imports':>15}{'terms':>8}")
    for name, each in measured.items():
        sizes = f"{each['peak'] / 2**30:10.2f}{each['above_imports'] / 2**30:15.2f}"
        print(f"{name:24}{each['size']:8}{each['passages_per_second']:12.1f}{sizes}{each['terms_a_passage']:8.0f}")
    print(
        f"{result['speed_ratio']:.2f} times the passages/s in {result['memory_ratio']:.2f} of the memory, vectors within "
        f"{difference:.1e}, {ours['padding_share']:.1%} padding; bf16 is {half:.2f} times as fast as fp32 (trial passages)",
        flush=True,
    )
    return result


def _noise(model: str, folder: Path, threads: int, passages: int) -> dict[str, Any]:
    """Measure what float32 leaves open on a model, and print it."""
    found = _call("encoder_variants", "own_difference", threads, folder=folder, model=model, passages=passages)
    print(
        f"{model}, each passage a batch: the two within {found['same_order']:.1e}; {THEIRS} in batches of 8 is within "
        f"{found['theirs_in_batches']:.1e} of itself (weights up to {found['largest_weight']:.1f})",
        flush=True,
    )
    return found


def _stage(folder: Path, threads: int, run: dict[str, Any] | None) -> dict[str, Any]:
    """Measure the Ray Data stage beside the loop, the loop before and after it, and print the ratio.

    Args:
        run: of the same model and threads; its batch size is taken.
    """
    work = {"folder": folder, "model": STAGE_MODEL, "size": run["variants"][OURS]["size"] if run else 8192}
    loops = [_call("encoder_variants", "loop", threads, **work)["passages_per_second"]]
    with tempfile.TemporaryDirectory() as root:
        stage = _call("encoder_variants", "stage", threads, cpus=threads, root=root, **work)
    loops.append(_call("encoder_variants", "loop", threads, **work)["passages_per_second"])
    ratio = stage["passages_per_second"] / (sum(loops) / len(loops))
    print(
        f"Ray Data stage, {STAGE_MODEL}, {threads} threads: {stage['passages_per_second']:.1f} passages/s once its actor is "
        f"up ({stage['start_up']:.0f} s), loop {loops[0]:.1f} before and {loops[1]:.1f} after: ratio {ratio:.3f}",
        flush=True,
    )
    return {"size": work["size"], "stage": stage, "loops": loops, "ratio": ratio}


def _spread(folder: Path, threads: int, measured: dict[str, Any] | None) -> dict[str, Any]:
    """Measure the stage with as many actors of one thread, beside the loop that was measured with all threads."""
    assert measured is not None
    work = {"folder": folder, "model": STAGE_MODEL, "size": measured["size"]}
    with tempfile.TemporaryDirectory() as root:
        stage = _call("encoder_variants", "stage", 1, cpus=1, actors=threads, root=root, **work)
    ratio = stage["passages_per_second"] / (sum(measured["loops"]) / len(measured["loops"]))
    print(
        f"Ray Data stage, {STAGE_MODEL}, {threads} actors of one thread: {stage['passages_per_second']:.1f} passages/s: "
        f"ratio {ratio:.3f} to the loop of {threads} threads",
        flush=True,
    )
    return {"stage": stage, "ratio": ratio}


def _call(module: str, function: str, threads: int, **arguments: Any) -> dict[str, Any]:
    """Call a function of another module in a process of its own and return its dictionary ({} for None)."""
    wanted = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
    paths = [name for name, value in arguments.items() if isinstance(value, Path)]
    code = (
        f"import json, pathlib, {module}; found = json.loads({json.dumps(wanted)!r}); "
        f"found.update({{name: pathlib.Path(found[name]) for name in {paths!r}}}); "
        f"print(json.dumps({module}.{function}(**found) or {{}}))"
    )
    return dict(json.loads(in_a_process(["-c", code], threads).splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
