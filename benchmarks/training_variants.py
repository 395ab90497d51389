"""The three ways to train that `training.py` compares; each runs in a process of its own and returns its measurement.

    reference               plain torch: passages and rewrites encoded by a frozen SPLADE encoder at every step, logits
                            [B, L, V] held, KL divergence of the scores
    sentence-transformers   SpladeLoss(SparseDistillKLDivLoss): one SparseEncoder for queries and passages, both trained
    raydistill              the product's Trainer: passages read from the index

Same queries, passages, starting weights, optimizer (AdamW, no dropout) and batch of queries an optimizer step.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

from processes import memory, reset_peak
from training_inputs import (
    NEGATIVES,
    PASSAGE_TOKENS,
    TEACHER,
    TEXT,
    Query,
    batch_size,
    batches,
    benchmark_config,
    candidate_stream,
)

T = TypeVar("T")
LEARNING_RATE = 2e-5
HEAD_FILE = "head.safetensors"


def measure(variant: str, folder: Path, device: str, precision: str, micro: int, queries: tuple[int, int]) -> dict[str, Any]:
    """Run one variant in this process.

    Args:
        variant: a key of `VARIANTS`.
        folder: what `training_inputs.prepare` made.
        device: cpu or cuda. precision: fp32 or bf16 (autocast).
        micro: queries that are encoded at a time; the rest of a batch is accumulated.
        queries: warm-up queries, then measured ones; multiples of `micro`, for raydistill of a batch.

    Returns:
        queries_per_second; first_loss, of the first whole batch (None when there was none); and bytes: baseline (resident
        after the imports), peak (highest resident), above_baseline; on cuda also peak_device. Processes that read ahead of
        a GPU are not weighed.
    """
    train = VARIANTS[variant](folder, device, precision, micro)  # imports happen here, models load when it is called
    import transformers.models.bert.modeling_bert  # noqa: F401  (120 MB that every variant imports when its model loads)

    baseline = memory("VmRSS")
    reset_peak()
    batch = batch_size(folder)
    unit = batch if variant == "raydistill" else micro  # what a reported loss is of
    warm_up, measured = (count // unit for count in queries)
    losses: list[float] = []
    times: list[float] = []

    def on_loss(loss: float) -> None:
        losses.append(loss)
        times.append(time.perf_counter())

    train(warm_up + measured, on_loss)
    if not all(map(math.isfinite, losses)):
        raise SystemExit(f"{variant}: a loss is not finite: {losses}")
    seconds = times[-1] - times[warm_up - 1]
    result = {
        "queries_per_second": measured * unit / seconds,
        "first_loss": _first_loss(losses, batch // unit),
        "baseline": baseline,
        "peak": memory("VmHWM"),
        "above_baseline": memory("VmHWM") - baseline,
    }
    if device == "cuda":
        import torch

        result["peak_device"] = torch.cuda.max_memory_allocated()
    return result


def _first_loss(losses: list[float], pieces: int) -> float | None:
    return sum(losses[:pieces]) / pieces if len(losses) >= pieces else None


def _pieces(folder: Path, micro: int) -> Iterator[list[Query]]:
    """Yield micro-batches, for ever."""
    for batch in cycle(batches(folder)):
        for start in range(0, len(batch), micro):
            yield batch[start : start + micro]


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items, each made by a thread while the one before is used (what peers leave to a data loader)."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


OnLoss = Callable[[float], None]
Train = Callable[[int, OnLoss], None]
"""Trains on a number of micro-batches (raydistill: batches) and reports the loss after each."""


def _reference(folder: Path, device: str, precision: str, micro: int) -> Train:
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torch.nn import functional
    from transformers import AutoModel, AutoTokenizer

    class Splade(nn.Module):
        """The textbook encoder: all logits, then log(1 + ReLU), then the maximum over positions."""

        def __init__(self, path: Path) -> None:
            super().__init__()
            self.backbone = AutoModel.from_pretrained(str(path), dtype=torch.float32)
            head = load_file(path / HEAD_FILE)
            self.scale, self.bias = nn.Parameter(head["scale"].clone()), nn.Parameter(head["bias"].clone())

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
            hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            logits = functional.linear(hidden * self.scale, self.backbone.get_input_embeddings().weight, self.bias)
            weights = torch.log1p(torch.relu(logits)) * attention_mask.unsqueeze(-1)
            return weights.amax(dim=1).float()

    def train(count: int, on_loss: OnLoss) -> None:
        tokenizer = AutoTokenizer.from_pretrained(str(folder / "student"))
        student = Splade(folder / "student").to(device).train()
        frozen = Splade(folder / "documents").to(device).eval()
        without_dropout(student)
        optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        batch = batch_size(folder)

        def tokenized(texts: list[str], limit: int) -> Any:
            return tokenizer(texts, truncation=True, max_length=limit, padding=True, return_tensors="pt")

        def ready(piece: list[Query]) -> tuple[list[Query], Any, Any, Any]:
            return (
                piece,
                tokenized([query.text for query in piece], TEXT["max_tokens"]),
                tokenized([text for query in piece for text in query.passages], PASSAGE_TOKENS),
                tokenized([query.rewrite for query in piece], PASSAGE_TOKENS),
            )

        def encoded(model: Splade, tokens: Any) -> torch.Tensor:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
                return model(**tokens.to(device))

        pieces = _ahead(map(ready, islice(_pieces(folder, micro), count)))
        for number, (piece, of_queries, of_passages, of_rewrites) in enumerate(pieces):
            queries = encoded(student, of_queries)
            with torch.no_grad():
                passages = encoded(frozen, of_passages).view(len(piece), NEGATIVES + 1, -1)
                rewrites = encoded(frozen, of_rewrites)
                teacher = torch.einsum("bv,bkv->bk", rewrites, passages)
            scores = torch.einsum("bv,bkv->bk", queries, passages)
            log_p = torch.log_softmax(scores, dim=1)
            loss = functional.kl_div(log_p, torch.softmax(teacher, dim=1), reduction="batchmean")
            (loss * len(piece) / batch).backward()
            if (number + 1) * micro % batch == 0:
                nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            on_loss(float(loss.detach()))

    return train


def _sentence_transformers(folder: Path, device: str, precision: str, micro: int) -> Train:
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.losses import SparseDistillKLDivLoss, SpladeLoss

    def train(count: int, on_loss: OnLoss) -> None:
        model = SparseEncoder(str(folder / "student"), device=device).train()
        without_dropout(model)
        loss_of = SpladeLoss(
            model,
            SparseDistillKLDivLoss(model, temperature=1.0),
            document_regularizer_weight=3e-5,
            query_regularizer_weight=5e-5,
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        batch = batch_size(folder)

        def features(texts: list[str], limit: int) -> Any:
            return model.tokenizer(texts, truncation=True, max_length=limit, padding=True, return_tensors="pt")

        def ready(piece: list[Query]) -> tuple[list[Query], list[Any]]:
            columns = [features([query.text for query in piece], TEXT["max_tokens"])]
            for place in range(NEGATIVES + 1):
                columns.append(features([query.passages[place] for query in piece], PASSAGE_TOKENS))
            return piece, columns

        for number, (piece, columns) in enumerate(_ahead(map(ready, islice(_pieces(folder, micro), count)))):
            # Their trainer reads the teacher's scores from the data set, too.
            teacher = torch.tensor([query.scores for query in piece], device=device)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
                parts = loss_of([dict(column.to(device)) for column in columns], teacher)
            loss = torch.stack(list(parts.values())).sum()
            (loss * len(piece) / batch).backward()
            if (number + 1) * micro % batch == 0:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            on_loss(float(parts["base_loss"].detach()))

    return train


def _raydistill(folder: Path, device: str, precision: str, micro: int) -> Train:
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"})
    os.environ["MASTER_PORT"] = str(_free_port())
    import deepspeed  # noqa: F401  (part of the baseline: the trainer imports it)
    import torch

    from raydistill.distill.engine import Workplace
    from raydistill.distill.loop import Hooks, Trainer
    from raydistill.encoders.documents import load_tokenizer
    from raydistill.index.forward import ForwardVectors, document_share
    from raydistill.index.publish import IndexVersion
    from raydistill.storage.artifacts import Artifact

    def train(count: int, on_loss: OnLoss) -> None:
        made = json.loads((folder / "artifacts.json").read_text())
        candidates, index = Artifact.from_json(made["candidates"]), IndexVersion.from_json(made["index"])
        turns = candidates.manifest().rows
        config = benchmark_config(
            folder,
            learning_rate=LEARNING_RATE,
            precision=precision,
            micro_batch=micro,
            epochs=count * batch_size(folder) / turns - 1e-6,
            checkpoint_steps=10**9,
        )
        stream = candidate_stream(config, candidates, ForwardVectors(index))
        tokenizer = load_tokenizer(str(folder / "student"), None, False, "student.model")
        place = Workplace(0, 1, torch.device(device))
        share = document_share(index)
        trainer = Trainer(config.student, config.train, stream, tokenizer, place, share, [TEACHER])
        trainer.run(Hooks(log=lambda record: on_loss(record["loss"]), checkpoint=lambda *_: None))

    return train


def without_dropout(model: Any) -> None:
    """Switch dropout off, so that all variants compute the same from the same weights."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


VARIANTS = {
    "reference": _reference,
    "sentence-transformers": _sentence_transformers,
    "raydistill": _raydistill,
}
