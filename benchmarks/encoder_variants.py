"""The encoders that `encoder.py` compares, each run in a process of its own, and the Ray stage beside its own loop.

    raydistill              SpladeEncoder, float32, batches of a token budget
    raydistill bf16         the same under bf16 autocast
    sentence-transformers   SparseEncoder.encode_document, batches of a number of passages, sparse tensors as it returns them
    sentence-transformers bf16   the same, its weights in bf16

All read the same folder and keep every active term. On a GPU (`encoder_gpu.py`) several of them run in one process.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from encoder_inputs import CORPUS, MAX_TOKENS, model_folder, read_texts
from processes import memory, reset_peak

from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.interface import EncodingTally

TRIED = {
    "raydistill": (1024, 4096, 8192, 16384),
    "raydistill bf16": (1024, 4096, 8192, 16384),
    "sentence-transformers": (1, 4, 8, 16, 32),
}
"""Batch sizes that are tried: padded tokens, and passages."""
STAGE_SEGMENTS = 8
WARM_UP = 4

HALF_THEIRS = "sentence-transformers bf16"
GPU_TRIED = {
    "raydistill": (16_384, 65_536, 262_144),
    "raydistill bf16": (16_384, 65_536, 262_144),
    "sentence-transformers": (32, 128, 512),
    HALF_THEIRS: (32, 128, 512),
}
Encode = Callable[[list[str], int], SparseBatch]
"""(texts, batch size) -> vectors, in the order of the texts."""


def best_size(variant: str, folder: Path, model: str, passages: int, device: str = "cpu") -> dict[str, Any]:
    """Return the passages/s of every batch size on some of the passages, evenly spaced, and the fastest size."""
    import torch

    texts = read_texts(folder)
    texts = texts[:: max(1, len(texts) // passages)][:passages]
    encode = _ENCODERS[variant](model_folder(folder, model), EncodingTally(), device)()
    sizes = (TRIED if device == "cpu" else GPU_TRIED)[variant]
    encode(texts[:WARM_UP], sizes[0])
    speeds = {}
    for size in sizes:
        try:
            if device == "cuda":
                encode(texts, size)  # what is tuned and allocated at first use
            speeds[size] = len(texts) / _seconds(encode, texts, size)[0]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return {"tried": speeds, "size": max(speeds, key=lambda size: speeds[size])}


def measure(variant: str, folder: Path, model: str, size: int, vectors: str, device: str = "cpu") -> dict[str, Any]:
    """Encode all passages once.

    Args:
        variant: a key of `TRIED`, on a GPU of `GPU_TRIED`.
        folder: what `encoder_inputs.prepare` made.
        model: one of `encoder_inputs.MODELS`.
        size: of a batch.
        vectors: .npz file to write the vectors to, once time and memory are taken.

    Returns:
        passages_per_second; and bytes: baseline (resident after the imports), peak (highest resident while the model was
        loaded and encoded), above_imports, on a GPU peak_device (what torch allocated there); padding_share and
        compute_share, of the time (raydistill).
    """
    import torch

    texts = read_texts(folder)
    tally = EncodingTally()
    load = _ENCODERS[variant](model_folder(folder, model), tally, device)  # imports happen here, the model is loaded below
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    baseline = memory("VmRSS")
    reset_peak()
    encode = load()
    encode(texts[:WARM_UP], size)
    if device == "cuda":
        encode(texts, size)
        torch.cuda.reset_peak_memory_stats()
    before = EncodingTally(**vars(tally))
    seconds, found = _seconds(encode, texts, size)
    peak = memory("VmHWM")
    np.savez(vectors, indptr=found.indptr, term_ids=found.term_ids, weights=found.weights)
    result = {
        "passages_per_second": len(texts) / seconds,
        "baseline": baseline,
        "peak": peak,
        "above_imports": peak - baseline,
        "terms_a_passage": found.nnz / len(found),
    }
    if device == "cuda":
        result["peak_device"] = torch.cuda.max_memory_allocated()
    padded = tally.padded_tokens - before.padded_tokens
    if padded:
        result["padding_share"] = 1 - (tally.tokens - before.tokens) / padded
        result["compute_share"] = (tally.compute_seconds - before.compute_seconds) / seconds
    return result


def stage(
    folder: Path, model: str, size: int, cpus: int, root: str, actors: int = 1, precision: str = "fp32", gpus: float = 0.0
) -> dict[str, Any]:
    """Build the index of the passages on a local Ray, and return its actors' speed together, apart from starting up.

    The stage's time runs from the moment its actor is ready to the end of the last segment's encoding, with reading,
    storing the segments before it, and whatever Ray does in between; see `index.encoding_summary`.
    """
    from raydistill.actor_pool import connect
    from raydistill.config import (
        ConversationSource,
        DataConfig,
        IndexConfig,
        PoolConfig,
        RayConfig,
        SpladeDocumentsConfig,
        StudentConfig,
    )
    from raydistill.index.build import build_index
    from raydistill.index.corpus import prepare_corpus

    connect(RayConfig(local_cpus=actors * cpus))
    unused = ConversationSource(conversations="/unused")
    data = DataConfig(corpus=(str(folder / CORPUS),), train=unused, test=unused)
    source = str(model_folder(folder, model))
    # As many terms as there are: the loop beside it keeps all of them, too.
    documents = SpladeDocumentsConfig.model_validate(
        {"model": source, "max_tokens": MAX_TOKENS, "max_terms": 2**20, "batch_tokens": size, "precision": precision}
    )
    workers = PoolConfig(actors=actors, cpus=cpus, gpus=gpus)
    rows = _segment_rows(folder)
    corpus = prepare_corpus(data, rows, workers, root)
    started = time.perf_counter()
    config = IndexConfig(documents=documents, passages_per_segment=rows, workers=workers)
    version = build_index(config, StudentConfig(model=source), corpus, root)
    whole = time.perf_counter() - started
    encoding = dict(version.metadata["encoding"])
    together = encoding["passages_per_second"] * actors
    start_up = whole - encoding["worker_seconds"] / actors
    return {**encoding, "passages_per_second": together, "actors": actors, "seconds": whole, "start_up": start_up}


def loop(folder: Path, model: str, size: int, device: str = "cpu", precision: str = "fp32") -> dict[str, Any]:
    """Encode the segments' passages one segment after another, without Ray and without storing anything."""
    import torch

    from raydistill.encoders.checkpoint import load_student

    texts, rows = read_texts(folder), _segment_rows(folder)
    encoder = load_student(model_folder(folder, model)).encoder(size, device)
    encoder.dtype = torch.bfloat16 if precision == "bf16" else None
    encoder.encode_passages(texts[:WARM_UP])
    started = time.perf_counter()
    windows = (texts[start : start + rows] for start in range(0, len(texts), rows))
    passages = sum(len(vectors) for vectors in encoder.encode_stream(windows, EncodingTally()))
    return {"passages_per_second": passages / (time.perf_counter() - started)}


def own_difference(folder: Path, model: str, passages: int) -> dict[str, float]:
    """Return largest differences on some of the passages: of both encoders, each passage a batch of its own, so that the
    model's products run in one order; of sentence-transformers and itself in batches of 8; and the largest weight."""
    texts = read_texts(folder)
    texts = texts[:: max(1, len(texts) // passages)][:passages]
    ours, theirs = (
        _ENCODERS[name](model_folder(folder, model), EncodingTally(), "cpu")()
        for name in ("raydistill", "sentence-transformers")
    )
    alone = theirs(texts, 1)
    return {
        "same_order": _difference(ours(texts, 1), alone),
        "theirs_in_batches": _difference(alone, theirs(texts, 8)),
        "largest_weight": float(alone.weights.max()),
    }


def _difference(one: SparseBatch, other: SparseBatch) -> float:
    keys, weights = [], []
    for batch, sign in ((one, 1.0), (other, -1.0)):
        rows = np.repeat(np.arange(len(batch)), batch.lengths())
        keys.append(rows * 2**32 + batch.term_ids)
        weights.append(sign * batch.weights.astype(np.float64))
    _, place = np.unique(np.concatenate(keys), return_inverse=True)
    return float(np.abs(np.bincount(place, np.concatenate(weights))).max())


def largest_difference(one: str, other: str) -> float:
    """Return the largest absolute difference of two files of vectors; a term that one lacks counts as 0 there."""
    batches = []
    for path in (one, other):
        with np.load(path) as found:
            batches.append(SparseBatch(found["indptr"], found["term_ids"], found["weights"], 2**31 - 1))
    return _difference(*batches)


def _segment_rows(folder: Path) -> int:
    return -(-len(read_texts(folder)) // STAGE_SEGMENTS)


def _seconds(encode: Encode, texts: list[str], size: int) -> tuple[float, SparseBatch]:
    started = time.perf_counter()
    found = encode(texts, size)
    return time.perf_counter() - started, found


def _raydistill(folder: Path, tally: EncodingTally, device: str, half: bool = False) -> Callable[[], Encode]:
    import torch

    from raydistill.encoders.checkpoint import load_student
    from raydistill.encoders.encoding import windows_of

    def load() -> Encode:
        encoder = load_student(folder).encoder(device=device)
        encoder.dtype = torch.bfloat16 if half else None

        def encode(texts: list[str], size: int) -> SparseBatch:
            encoder.batch_tokens = size
            return SparseBatch.concatenate(list(encoder.encode_stream(windows_of(texts), tally)))

        return encode

    return load


def _sentence_transformers(folder: Path, tally: EncodingTally, device: str, half: bool = False) -> Callable[[], Encode]:
    from sentence_transformers import SparseEncoder

    def load() -> Encode:
        encoder = SparseEncoder(str(folder), device=device)
        if half:
            encoder.bfloat16()

        def encode(texts: list[str], size: int) -> SparseBatch:
            found = encoder.encode_document(texts, batch_size=size, show_progress_bar=False).coalesce().cpu()
            rows, terms = found.indices().numpy()
            indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(texts)))]).astype(np.int64)
            return SparseBatch(indptr, terms.astype(np.int32), found.values().float().numpy(), found.shape[1])

        return encode

    return load


_ENCODERS: dict[str, Callable[[Path, EncodingTally, str], Callable[[], Encode]]] = {
    "raydistill": _raydistill,
    "raydistill bf16": partial(_raydistill, half=True),
    "sentence-transformers": _sentence_transformers,
    HALF_THEIRS: partial(_sentence_transformers, half=True),
}
