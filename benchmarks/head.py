"""Time and memory of the SPLADE head alone: `python benchmarks/head.py --out benchmarks/results/NAME.json`.

Compares `raydistill.encoders.head` with plain torch in the textbook order and with sentence-transformers' SpladePooling (the
module itself, after torch's linear layer); on a GPU also with torch.compile of the textbook order; if asked, with plain
torch that takes the maximum first. All hold [batch, length, vocabulary] numbers; where that exceeds `--memory-bound` they
are measured with the largest batch that fits, ours with that batch too, and with the whole one for its training step with
the last number of active terms. On a CPU every measurement is a process of its own, whose resident memory is read; on a GPU
one process does all, and reads what torch allocates on the device. Inputs are random, without padding; the bias sets how
many terms of a text are active. The peers' work does not depend on that number, so they are measured at the first one of
each shape only. Shapes that an existing file holds and that are not measured again stay in it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from processes import in_a_process, machine, memory, reset_peak

CHECKOUT = Path(__file__).resolve().parent.parent
OURS = "raydistill"
PEERS = ("textbook order", "sentence-transformers", "maximum first")
USUAL_PEERS = PEERS[:2]
COMPILED = "textbook order, compiled"
MODES = ("forward", "forward and backward")
# Logits-sized tensors that a peer is counted with when deciding what fits.
HELD_TENSORS = 5
MEASURED_SECONDS, MEASURED_TIMES = 2.0, 7
# A GPU is given so much work between two looks at the clock that the launches' own time is small beside it.
UNWATCHED_SECONDS = 0.03
DEFAULT_BOUND_GIB = {"cpu": 6.0, "cuda": 60.0}


def main() -> int:
    """Run all measurements, print ratios, store the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[2], help="compute threads; one table each")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32, on cuda bfloat16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[30_522, 250_002])
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 768])
    parser.add_argument("--active", type=int, nargs="+", default=[200, 8000], help="active terms a text")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=USUAL_PEERS)
    bounds = ", ".join(f"{bound:g} on {device}" for device, bound in DEFAULT_BOUND_GIB.items())
    parser.add_argument("--memory-bound", type=float, help=f"GiB a peer may use (on cuda: of the device); default {bounds}")
    parser.add_argument("--quick", action="store_true", help="a small shape, to see that it works")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.memory_bound = options.memory_bound or DEFAULT_BOUND_GIB[options.device]
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    if options.worker:
        print(json.dumps(_measured(**json.loads(options.worker))))
        return 0
    if options.quick:
        options.batch, options.lengths, options.vocabularies, options.widths = 8, [64], [8_000], [64]
        options.active = [min(each, 2000) for each in options.active]
    origin = {
        "machine": machine(options.device),
        "versions": {name: version(name) for name in ("raydistill", "torch", "sentence-transformers")},
        "settings": {"device": options.device, "dtype": options.dtype, "memory_bound_gib": options.memory_bound},
    }
    earlier = _earlier(options.out, origin)
    runs = [_compared(options, threads) for threads in options.threads]
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**origin, "runs": _merged(earlier, runs)}, indent=1) + "\n")
    return 0


def _earlier(path: Path | None, origin: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the runs of a file that was measured on the same machine with the same versions and settings."""
    if path is None or not path.is_file():
        return []
    found = json.loads(path.read_text())
    different = [name for name, value in origin.items() if found.get(name) != json.loads(json.dumps(value))]
    if different:
        raise SystemExit(f"{path} was measured with other {' and '.join(different)}; give another --out or remove it")
    return list(found["runs"])


def _merged(earlier: list[dict[str, Any]], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs with the earlier measurements of shapes that were not measured now."""

    def shape(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("length", "vocabulary", "width", "mode"))

    for run in runs:
        measured = {shape(row) for row in run["measurements"]}
        for old in earlier:
            if old["threads"] == run["threads"]:
                kept = [row for row in old["measurements"] if shape(row) not in measured]
                run["measurements"] = sorted(kept + run["measurements"], key=shape)
    threads = {run["threads"] for run in runs}
    return [old for old in earlier if old["threads"] not in threads] + runs


def _compared(options: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Measure every shape with a number of threads and print how ours compares."""
    run = partial(_here if options.device == "cuda" else _in_a_process, device=options.device, dtype=options.dtype)
    run = partial(run, threads=threads)
    ceilings = run(variant="ceilings")
    print(
        f"{threads} threads, {options.device}, {options.dtype}; a large product: {ceilings['tflops']:.3f} TFLOP/s, a copy: "
        f"{ceilings['gbytes']:.1f} GB/s; memory is above the inputs, gradients included",
        flush=True,
    )
    rows = []
    for vocabulary in options.vocabularies:
        for length in options.lengths:
            for width in options.widths:
                for mode in MODES:
                    shape = {"length": length, "vocabulary": vocabulary, "width": width, "mode": mode}
                    rows.extend(_rows(options, run, shape))
    return {"threads": threads, "ceilings": ceilings, "measurements": rows}


def _rows(options: argparse.Namespace, run: Callable[..., Any], shape: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure one shape and mode: peers once, ours with each number of active terms and each batch."""
    size = 4 if options.dtype == "float32" else 2
    logits = shape["length"] * shape["vocabulary"] * size
    batch = options.batch
    while batch > 1 and batch * logits * HELD_TENSORS > options.memory_bound * 2**30:
        batch //= 2
    print(f"\nlength {shape['length']}, vocabulary {shape['vocabulary']:,}, width {shape['width']}, {shape['mode']}")
    if batch < options.batch:
        needed = options.batch * logits / 2**30
        print(f"  batch {options.batch} is left out for the peers: one [B, L, V] tensor is {needed:.1f} GiB (calculated)")
    if batch * logits * HELD_TENSORS > options.memory_bound * 2**30:
        print("  a single text is left out for the peers, too")
        peers = []
    else:
        names = (*options.peers, COMPILED) if options.device == "cuda" else options.peers
        peers = [run(variant=name, batch=batch, active=options.active[0], **shape) for name in names]
    for peer in peers:
        _print(peer, "")
    ours = []
    sizes = [(batch, active) for active in options.active]
    if batch < options.batch and shape["mode"] == MODES[1]:
        sizes.append((options.batch, options.active[-1]))
    for number, active in sizes:
        found = run(variant=OURS, batch=number, active=active, **shape)
        against = {
            peer["variant"]: {"speed": peer["seconds"] / found["seconds"], "memory": found["peak"] / peer["peak"]}
            for peer in peers
            if peer["batch"] == number
        }
        ours.append({**found, "against": against})
        ratios = "; ".join(f"{each['speed']:.1f}x, {each['memory']:.3f} of memory" for each in against.values())
        _print(found, f"   {ratios}" if ratios else "")
    return peers + ours


def _print(found: dict[str, Any], ending: str) -> None:
    rates = f"{found['tflops']:8.3f} TFLOP/s" + (f" {found['gbytes']:7.1f} GB/s" if found["device"] == "cuda" else "")
    name = f"{found['variant']}, batch {found['batch']}, {found['active']:.0f} active"
    print(f"  {name:46}{found['seconds']:9.3f} s {found['peak'] / 2**20:8.0f} MiB {rates}{ending}", flush=True)


def _measured(variant: str, device: str, dtype: str, **case: Any) -> dict[str, Any]:
    """Return one measurement of this process: median seconds, peak bytes, active terms a text and what was achieved.

    tflops counts the products that the definition asks for (2 B L V H; with gradients the peers' own three times that are
    not counted), gbytes reading the inputs and writing the results once.
    """
    import torch

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    if variant == "ceilings":
        return _ceilings(device, kind)
    pool = _variant(variant)
    batch, length, vocabulary, width = case["batch"], case["length"], case["vocabulary"], case["width"]
    training = case["mode"] == MODES[1]
    # Of states of equal norm, as a LayerNorm leaves them, a logit is standard normal; the largest of `length` exceeds t with
    # probability 1 - Phi(t)^length.
    hidden = torch.nn.functional.normalize(torch.randn(batch, length, width), dim=2).mul(width**0.5).to(device, kind)
    weight = (torch.randn(vocabulary, width) / width**0.5).to(device, kind)
    threshold = statistics.NormalDist().inv_cdf((1 - case["active"] / vocabulary) ** (1 / length))
    bias = torch.full((vocabulary,), -threshold, device=device, dtype=kind)
    mask = torch.ones(batch, length, dtype=torch.int64, device=device)
    upstream = torch.randn(batch, vocabulary, device=device)
    inputs = [hidden, weight, bias]

    def step() -> Any:
        if not training:
            with torch.no_grad():
                return pool(*inputs, mask, False)
        for tensor in inputs:
            tensor.grad = None
        pooled = pool(*inputs, mask, True)
        pooled.backward(upstream.to(pooled.dtype))
        return pooled.detach()

    for tensor in inputs:
        tensor.requires_grad_(training)
    # What is loaded or compiled at first use is not measured: a small shape, on a GPU the very shape.
    small = [hidden[:1, :4].detach(), weight[:64].detach(), bias[:64].detach()]
    for tensor in small:
        tensor.requires_grad_(training)
    warm = pool(*small, mask[:1, :4], training)
    if training:
        warm.sum().backward()
    repeats = 1
    if device == "cuda":
        step()
        repeats = math.ceil(UNWATCHED_SECONDS / _seconds(step, device))
        for tensor in inputs:
            tensor.grad = None
    before = _start_of_memory(device)
    seconds: list[float] = []
    while not seconds or (sum(seconds) * repeats < MEASURED_SECONDS and len(seconds) < MEASURED_TIMES):
        seconds.append(_seconds(step, device, repeats))
        peak = (torch.cuda.max_memory_allocated() if device == "cuda" else memory("VmHWM")) - before
    active = float((step() > 0).sum()) / batch
    median = statistics.median(seconds)
    moved = sum(tensor.nbytes for tensor in inputs) * (2 if training else 1) + batch * vocabulary * 4
    return {
        "variant": variant,
        "device": device,
        **case,
        "wanted_active": case["active"],
        "active": active,
        "seconds": median,
        "times": len(seconds),
        "peak": peak,
        "tflops": 2 * batch * length * vocabulary * width / median / 1e12,
        "gbytes": moved / median / 1e9,
    }


def _seconds(step: Callable[[], Any], device: str, repeats: int = 1) -> float:
    """Return how long a step takes, of several in a row."""
    import torch

    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def _start_of_memory(device: str) -> int:
    """Let the peak start again, and return what is in use now."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    reset_peak()
    return memory("VmRSS")


def _ceilings(device: str, dtype: Any) -> dict[str, Any]:
    """Return what this machine reaches with a large product and a large copy, at best."""
    import torch

    size = 8192 if device == "cuda" else 2048
    square = torch.randn(size, size).to(device, dtype)
    long = torch.randn(2**26).to(device)
    target = torch.empty_like(long)

    def best_of(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(6):
            start = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    return {
        "tflops": 2 * size**3 / best_of(lambda: square @ square) / 1e12,
        "gbytes": 2 * long.nbytes / best_of(lambda: target.copy_(long)) / 1e9,
    }


def _variant(name: str) -> Callable[..., Any]:
    """Return pool(hidden, weight, bias, mask, training) -> [B, V]."""
    import torch
    from torch.nn.functional import linear

    def textbook(hidden: Any, weight: Any, bias: Any, mask: Any, training: bool) -> Any:
        return (torch.log1p(torch.relu(linear(hidden, weight, bias))) * mask.unsqueeze(-1)).amax(1)

    def maximum_first(hidden: Any, weight: Any, bias: Any, mask: Any, training: bool) -> Any:
        logits = linear(hidden, weight, bias).masked_fill(mask.unsqueeze(-1) == 0, -torch.inf)
        return torch.log1p(torch.relu(logits.amax(1)))

    if name == OURS:
        from raydistill.encoders.head import splade_head

        return lambda hidden, weight, bias, mask, training: splade_head(hidden, weight, bias, mask)
    if name == "sentence-transformers":
        from sentence_transformers.sparse_encoder.modules import SpladePooling

        pooling = SpladePooling()

        def sentence_transformers(hidden: Any, weight: Any, bias: Any, mask: Any, training: bool) -> Any:
            pooling.train(training)
            features = {"token_embeddings": linear(hidden, weight, bias), "attention_mask": mask}
            return pooling(features)["sentence_embedding"]

        return sentence_transformers
    if name == COMPILED:
        return torch.compile(textbook)
    return textbook if name == "textbook order" else maximum_first


def _here(threads: int, **work: Any) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    torch.compiler.reset()
    torch.cuda.empty_cache()
    return _measured(**work)


def _in_a_process(threads: int, **work: Any) -> dict[str, Any]:
    ended = in_a_process([str(Path(__file__).resolve()), "--worker", json.dumps(work)], threads)
    return dict(json.loads(ended.splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
