"""Memory of the Ray encoding stage over time: `python benchmarks/encoding_memory.py --out benchmarks/results/NAME.json`.

Builds the index of synthetic passages with a tiny SPLADE encoder on a local Ray, and samples the resident memory of the
driver and of the actors from /proc. Bounds are derived before the run (`bounds`) from the size of a segment and the number
of segments alone, above what a build of one small segment took. A process beyond its bound, or one that still grows in the
last third of the time, ends the script with status 1. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from job_footprint import descendants
from processes import machine

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
from raydistill.encoders.encoding import WINDOW_TEXTS
from raydistill.index.build import build_index
from raydistill.index.corpus import prepare_corpus
from raydistill.index.publish import IndexVersion

VOCABULARY = 4000
WORDS_A_PASSAGE = (10, 40)
MAX_TERMS = 120
BATCH_TOKENS = 8192
FIRST_PASSAGES = 64
SLACK = 256 << 20
"""What lazily imported modules, code pages and kernels that the first small segment did not touch may add, and what the
allocator keeps of freed blocks: batches have any shape, so blocks of many sizes lie between each other."""
GROWTH = 48 << 20
"""What a process's highest in the last third of the time may be above that in the middle third."""
POSTING_BYTES = 26 + 2 * 8
"""A posting while its segment is inverted, and its vectors twice: the windows' and the segment's (index/build.py)."""
RECEIPT_BYTES = 16 << 10
"""A segment on the driver: its specification, receipt and counters, with Ray's own record of the task."""
TEXT_BYTES = 4 * 8 * WORDS_A_PASSAGE[1]
"""A passage of a window at most: its text in Arrow and in Python, with its tokens' ids."""


@dataclass(frozen=True)
class Sample:
    """Resident bytes of a process: seconds since the start of sampling; "driver", "actor" or "other" (Ray's own); its id."""

    seconds: float
    kind: str
    pid: int
    rss: int


def bounds(segment_rows: int, segments: int, before: dict[str, int]) -> dict[str, int]:
    """Return the most resident bytes that the driver and an actor may have.

    Args:
        segment_rows: passages in a segment.
        segments: how many.
        before: what each took for one segment of `FIRST_PASSAGES`.
    """
    shortest = WORDS_A_PASSAGE[0] + 2
    dense = 3 * 4 * VOCABULARY * BATCH_TOKENS // shortest  # weights, maxima and the mask of their non-zeros
    window = min(segment_rows, WINDOW_TEXTS) * TEXT_BYTES
    return {
        "driver": before["driver"] + segments * RECEIPT_BYTES + SLACK,
        "actor": before["actor"] + segment_rows * MAX_TERMS * POSTING_BYTES + dense + window + SLACK,
    }


def growth(samples: list[Sample]) -> dict[str, int]:
    """Return how far the peak of each kind in the last third of the time is above that in the middle third, in bytes."""
    end = max((sample.seconds for sample in samples), default=0.0)
    middle = peaks([sample for sample in samples if end / 3 <= sample.seconds < 2 * end / 3])
    last = peaks([sample for sample in samples if sample.seconds >= 2 * end / 3])
    return {kind: last[kind] - middle[kind] for kind in last if kind in middle}


def peaks(samples: list[Sample]) -> dict[str, int]:
    """Return the highest resident bytes of one process of each kind."""
    found: dict[str, int] = {}
    for sample in samples:
        found[sample.kind] = max(found.get(sample.kind, 0), sample.rss)
    return found


class Sampler:
    """Samples the memory of this process and its descendants, Ray's among them, from a thread."""

    def __init__(self, every_seconds: float) -> None:
        self.samples: list[Sample] = []
        self._every = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        started = time.monotonic()
        while not self._stop.wait(self._every):
            now = time.monotonic() - started
            for pid in descendants(os.getpid()):
                try:
                    command = Path(f"/proc/{pid}/cmdline").read_text()
                    rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                except OSError:
                    continue
                kind = "driver" if pid == os.getpid() else "actor" if "_ShardActor" in command else "other"
                self.samples.append(Sample(round(now, 1), kind, pid, rss))


def write_model(folder: Path) -> None:
    """Write a tiny random BERT with an MLM head over words w0, w1, ... and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    terms = [*special, *(f"w{number}" for number in range(VOCABULARY - len(special)))]
    backend = Tokenizer(models.WordLevel({term: number for number, term in enumerate(terms)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **shape)).save_pretrained(folder)


def write_passages(path: Path, passages: int) -> None:
    """Write synthetic passages, row by row."""
    rng = np.random.default_rng(7)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(passages):
            words = rng.integers(0, VOCABULARY - 5, size=rng.integers(*WORDS_A_PASSAGE))
            record = {"_id": f"p{number}", "title": "", "text": " ".join(f"w{word}" for word in words)}
            stream.write(json.dumps(record) + "\n")


def build(folder: Path, passages: int, segment_rows: int, actors: int) -> IndexVersion:
    """Return the index of some passages, in a run root of its own."""
    corpus_file, root = folder / f"{passages}.jsonl", str(folder / f"root-{passages}")
    write_passages(corpus_file, passages)
    unused = ConversationSource(conversations="/unused")
    data = DataConfig(corpus=(str(corpus_file),), train=unused, test=unused)
    workers = PoolConfig(actors=actors, cpus=1)
    documents = SpladeDocumentsConfig(
        model=str(folder / "model"), max_tokens=64, max_terms=MAX_TERMS, batch_tokens=BATCH_TOKENS
    )
    config = IndexConfig(documents=documents, passages_per_segment=segment_rows, workers=workers)
    corpus = prepare_corpus(data, segment_rows, workers, root)
    return build_index(config, StudentConfig(model=str(folder / "model")), corpus, root)


def main() -> int:
    """Build, sample, print and store; 0 when every process stayed within its bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--segment", type=int, default=10_000, help="passages in a segment")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--sample-seconds", type=float, default=0.5)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    connect(RayConfig(local_cpus=2))
    with tempfile.TemporaryDirectory(prefix="raydistill-memory-") as temporary:
        folder = Path(temporary)
        os.environ.setdefault("RAYDISTILL_CACHE_DIR", str(folder / "cache"))
        write_model(folder / "model")
        with Sampler(options.sample_seconds) as first:
            build(folder, FIRST_PASSAGES, FIRST_PASSAGES, options.actors)
        bound = bounds(options.segment, -(-options.passages // options.segment), peaks(first.samples))
        print({kind: f"at most {size / 2**20:.0f} MiB" for kind, size in bound.items()}, flush=True)
        with Sampler(options.sample_seconds) as sampler:
            built = build(folder, options.passages, options.segment, options.actors)
    found = peaks(sampler.samples)
    grown = growth(sampler.samples)
    within = all(found[kind] <= size and grown[kind] <= GROWTH for kind, size in bound.items())
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": {name: version(name) for name in ("raydistill", "torch", "transformers", "ray")},
        "settings": {"passages": options.passages, "segment": options.segment, "actors": options.actors},
        "before": peaks(first.samples),
        "bounds": bound,
        "peaks": found,
        "grown": grown,
        "within": within,
        "encoding": dict(built.metadata["encoding"]),
        "over_time": _over_time(sampler.samples, list(bound)),
    }
    for kind, size in bound.items():
        before = result["before"][kind]
        print(
            f"{kind}: peak {found[kind] / 2**20:.0f} MiB, bound {size / 2**20:.0f}, small segment {before / 2**20:.0f}; "
            f"last third of the time {grown[kind] / 2**20:+.0f} MiB against the middle third"
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if within else 1


def _over_time(samples: list[Sample], kinds: list[str], points: int = 100) -> dict[str, list[list[float]]]:
    """Return [second, MiB of the largest process] by kind, the highest of each of at most `points` equal spans of time."""
    span = max((sample.seconds for sample in samples), default=0.0) / points or 1.0
    series: dict[str, dict[int, float]] = {kind: {} for kind in kinds}
    for sample in samples:
        if sample.kind in series:
            place = int(sample.seconds / span)
            series[sample.kind][place] = max(series[sample.kind].get(place, 0.0), sample.rss / 2**20)
    return {kind: [[round(place * span, 1), round(size)] for place, size in found.items()] for kind, found in series.items()}


if __name__ == "__main__":
    sys.exit(main())
