"""What every worker of a document encoder's training runs: encode queries and passages, gather, differentiate, step.

One encoder reads both sides, and both have gradients (a siamese encoder). Memory would grow with the number of passages, so
gradients are cached (Gao et al., arXiv 2101.06983): all texts of the global batch are encoded without a graph, every
worker computes the loss on all vectors and its gradient with respect to them, and each chunk of texts is encoded once
more, with a graph, to send its rows' gradient into the parameters. So memory is that of a chunk, and the result that of
the whole batch at once, whatever the chunk and the number of workers. Without `cache_gradients` the graphs of all chunks
are held instead. DeepSpeed inside, no Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raydistill.config import LearnedDocumentsConfig
from raydistill.distill.checkpoints import Catalogue, Checkpoint, write_state, write_tensors
from raydistill.distill.document_step import SIDES, DocumentTensors, batch_sides, document_gradients
from raydistill.distill.document_stream import DocumentReader, DocumentStream, ReadyDocuments
from raydistill.distill.engine import (
    Workplace,
    gathered,
    gathered_on_first,
    learning_rate_share,
    set_learning_rate,
    start_engine,
    unclipped_norm,
)
from raydistill.distill.reading import reading_processes, ready_batches
from raydistill.distill.sparsity import Sparsity
from raydistill.distill.whole_state import KINDS, WholeState
from raydistill.encoders.dense import DenseEncoder
from raydistill.encoders.splade import SpladeModel
from raydistill.encoders.tokens import pad_id, padded
from raydistill.errors import TrainingError

Record = dict[str, Any]
_CALIBRATION_PASSAGES = 256


class DocumentTrainer:
    """A document encoder in training, its DeepSpeed engine and its step.

    Args:
        documents: what is trained, and how.
        stream: the batches.
        tokenizer: the encoder's.
        place: where this worker stands.
        fingerprint: of the training; only its own checkpoints continue it.
    """

    def __init__(
        self, documents: LearnedDocumentsConfig, stream: DocumentStream, tokenizer: Any, place: Workplace, fingerprint: str
    ) -> None:
        self._training = documents.training
        self._stream = stream
        self._tokenizer = tokenizer
        self._place = place
        self._fingerprint = fingerprint
        self.steps = self._training.steps
        self.step = 0
        torch.manual_seed(self._training.seed)
        self._starting = documents.starting_model()
        model = SpladeModel.from_config(self._starting).to(place.device)
        model.start_head(stream.sample_passages(_CALIBRATION_PASSAGES), tokenizer, self._starting)
        if self._training.dropout is not None:
            set_dropout(model, self._training.dropout)
        settings = self._training.loop_settings()
        groups = model.parameter_groups(settings.learning_rate, settings.weight_decay, settings.head_learning_rate)
        self.engine = start_engine(model, groups, settings, place)
        self._whole = WholeState(self.engine)
        field = "index.documents.training.{}_regularisation"
        self._sparsity = {
            side: Sparsity(self._regularisation(side), None, self.steps, field.format(side), texts)
            for side, texts in zip(SIDES, ("queries", "passages"), strict=True)
        }
        dense = self._training.dense_teacher
        # In bf16 MiniLM's cosines move by .0007 in the mean and by .003 at most.
        half = self._training.precision == "bf16" and place.device.type == "cuda"
        dtype = torch.bfloat16 if half else torch.float32
        field = "index.documents.training.dense_teacher"
        self._dense = None if dense is None else DenseEncoder(dense, field, place.device, dtype)

    def run(self, log: Callable[[Record], None], checkpoint: Callable[[DocumentTrainer], None]) -> None:
        """Train from the current step to the last; on every worker, `log` gets the record of every step, and `checkpoint`
        is called where one is due.

        Raises TrainingError when the loss is no number or a side has no term left, or sparsity collapses and its
        regularisation's on_collapse is stop.
        """
        training, dense = self._training, self._dense
        reader = DocumentReader(
            self._stream,
            self._tokenizer,
            training.max_tokens,
            None if dense is None else (dense.tokenizer, dense.max_tokens),
        )
        processes = reading_processes(training.readers, self._place.device)
        batches = ready_batches(reader, self.step, processes, "index.documents.training.readers")
        try:
            while self.step < self.steps:
                started = time.perf_counter()
                ready = next(batches)
                waited = time.perf_counter() - started
                values = self._train_step(ready)
                self.step += 1
                seconds = time.perf_counter() - started
                pace = {"texts_per_second": self._training.texts / seconds, "data_wait_share": waited / seconds}
                advice = {side: told for side in SIDES if (told := self._sparsity[side].advice()) is not None}
                record = {**values, **pace, "step": self.step, "epoch": ready.batch.epoch}
                log({**record, "advice": "; ".join(advice.values())} if advice else record)
                self._check(values, advice)
                if self.step % self._training.checkpoint_steps == 0 or self.step == self.steps:
                    checkpoint(self)
        finally:
            batches.close()

    def save(self, folder: Path) -> None:
        """Write this worker's part of a checkpoint; every worker must call it, each may have a folder of its own."""
        folder.mkdir(parents=True, exist_ok=True)

        def own() -> Any:
            for number, name in enumerate(self._whole.names):
                for kind in KINDS:
                    value = self._whole.read(name, kind)
                    if number % self._place.workers == self._place.rank:
                        yield f"{kind}/{name}", value

        written = gathered_on_first(write_tensors(folder, self._place.rank, own()), self._place)
        if self._place.rank == 0:
            catalogue = Catalogue.joined(written)
            state = {
                "step": self.step,
                "adam_steps": self._whole.adam_steps,
                "loss_scaler": self._whole.loss_scaler,
                "sparsity": {side: self._sparsity[side].state() for side in SIDES},
            }
            write_state(folder, "training", self._fingerprint, catalogue, state)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint of the same training, written at any number of workers and ZeRO stage.

        Raises TrainingError when it is damaged or of another training.
        """
        shapes = {f"{kind}/{name}": self._whole.shape(name) for name in self._whole.names for kind in KINDS}
        checkpoint = Checkpoint(folder, "training", self._fingerprint, shapes)
        for name in self._whole.names:
            for kind in KINDS:
                self._whole.write(name, kind, checkpoint.tensor(f"{kind}/{name}"))
        self._whole.adam_steps = int(checkpoint.state["adam_steps"])
        self._whole.loss_scaler = checkpoint.state["loss_scaler"]
        for side in SIDES:
            self._sparsity[side].load_state(checkpoint.state["sparsity"][side])
        self.step = int(checkpoint.state["step"])

    def full_model(self) -> SpladeModel | None:
        """Return the whole encoder in float32 on rank 0's CPU, None on the other workers; every worker must call it."""
        model = SpladeModel.from_config(self._starting) if self._place.rank == 0 else None
        named = dict(model.named_parameters()) if model is not None else {}
        for name in self._whole.names:
            value = self._whole.read(name, "parameter")
            if name in named:
                with torch.no_grad():
                    named[name].copy_(value)
        return model

    def _regularisation(self, side: str) -> Any:
        return self._training.query_regularisation if side == "query" else self._training.passage_regularisation

    def _train_step(self, ready: ReadyDocuments) -> Record:
        share = learning_rate_share(self.step, self.steps, self._training.warmup_share)
        set_learning_rate(self.engine, share)
        ids = ready.ids
        chunks = chunks_by_length([len(row) for row in ids], self._training.chunk)
        own = own_chunks(chunks, self._place)
        keep_graph = len(own) == 1 or not self._training.cache_gradients
        with torch.set_grad_enabled(keep_graph):
            parts = [self._encode(ids, rows, number) for number, rows in own]
        vectors = self._whole_batch([part.detach() for part in parts], chunks, len(ids))
        dense = self._dense_scores(ready.dense_ids, own, chunks)
        tensors = DocumentTensors.of(ready.batch, dense, self._training, self._place.device)
        gradients, values = document_gradients(vectors, tensors, self._training, self._sparsity)
        # DeepSpeed averages over workers and micro-batches; the loss is already that of the global batch.
        undo_average = self._place.workers * len(own)
        norm: float | None = None
        for position, (number, rows) in enumerate(own):
            part = parts[position] if keep_graph else self._encode(ids, rows, number)
            self.engine.backward((part[: len(rows)] * gradients[rows]).sum() * undo_average)
            if position == len(own) - 1:
                norm = unclipped_norm(self.engine)
            self.engine.step()
        for side, (found, depths) in batch_sides(vectors, tensors).items():
            moved = self._sparsity[side].advance(found, depths)
            values |= {f"{side}_{name}": value for name, value in moved.items()}
        kept = self.engine.get_global_grad_norm() if norm is None else norm
        if kept is not None:
            values["gradient_norm"] = float(kept)
        return {**values, "learning_rate": self._training.learning_rate * share}

    def _encode(self, ids: Sequence[Sequence[int]], rows: Sequence[int], number: int) -> Tensor:
        """Return the vectors of a chunk, float32 [chunk, V]; 0 beyond its rows."""
        # Seeded by position and not by history: dropout is the same in both passes, at any world size, after any resume.
        torch.manual_seed(hash((self._training.seed, self.step, number)) % 2**63)
        # A chunk without texts is one token: sharded workers must all run the same number of passes.
        kept = [ids[row] for row in rows] or [[pad_id(self._tokenizer)]]
        input_ids, mask = padded(kept, pad_id(self._tokenizer), self._place.device)
        vectors = self.engine(input_ids, mask).float()
        return torch.nn.functional.pad(vectors, (0, 0, 0, self._training.chunk - len(vectors)))

    def _whole_batch(self, parts: Sequence[Tensor], chunks: Sequence[Sequence[int]], texts: int) -> Tensor:
        """Bring the rows of all workers' chunks into the order of the batch, [texts, width]."""
        every = gathered(torch.cat(list(parts)), self._place)
        whole = every.new_zeros((texts, every.shape[1]))
        for worker in range(self._place.workers):
            for position, (_, rows) in enumerate(own_chunks(chunks, Workplace(worker, self._place.workers, every.device))):
                start = (worker * len(parts) + position) * self._training.chunk
                whole[list(rows)] = every[start : start + len(rows)]
        return whole

    def _dense_scores(
        self,
        ids: Sequence[Sequence[int]] | None,
        own: Sequence[tuple[int, Sequence[int]]],
        chunks: Sequence[Sequence[int]],
    ) -> Tensor | None:
        """Return the dense teacher's scores of all pairs, float32 [B, P]; each worker encodes its own chunks."""
        if self._dense is None or ids is None:
            return None
        parts = []
        for _, rows in own:
            vectors = self._dense.vectors_of([ids[row] for row in rows] or [[0]])
            parts.append(torch.nn.functional.pad(vectors, (0, 0, 0, self._training.chunk - len(vectors))))
        whole = self._whole_batch(parts, chunks, len(ids))
        queries = self._training.global_batch
        return whole[:queries] @ whole[queries:].T

    def _check(self, values: Record, advice: Mapping[str, str]) -> None:
        if not _is_number(values["loss"]):
            raise TrainingError(
                f"the loss of the document encoder is {values['loss']} at step {self.step}; lower "
                "index.documents.training.learning_rate, or set its precision to bf16 or fp32"
            )
        for side in SIDES:
            if values[f"{side}_l0"] == 0.0:
                raise TrainingError(
                    f"no {side} has a non-zero term left at step {self.step}, so no gradient can bring one back; lower "
                    f"index.documents.training.learning_rate, its head_learning_rate or {side}_regularisation"
                )
        for side, told in advice.items():
            if self._regularisation(side).on_collapse == "stop":
                raise TrainingError(told)


def chunks_by_length(lengths: Sequence[int], chunk: int) -> list[list[int]]:
    """Return row numbers in chunks of neighbouring length, longest first; nothing of it depends on the workers."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    return [order[start : start + chunk] for start in range(0, len(order), chunk)]


def own_chunks(chunks: Sequence[Sequence[int]], place: Workplace) -> list[tuple[int, Sequence[int]]]:
    """Return (number, rows) of the chunks that a worker encodes; dealt in turn, so that long texts spread evenly.

    Where chunks and workers do not divide, the last workers get a chunk without rows.
    """
    each = -(-len(chunks) // place.workers)
    numbers = [place.rank + position * place.workers for position in range(each)]
    return [(number, chunks[number] if number < len(chunks) else []) for number in numbers]


def set_dropout(model: torch.nn.Module, share: float) -> None:
    """Set every dropout probability of a model."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", share)  # noqa: B010 (a plain float attribute, unknown to the type)


def _is_number(value: float) -> bool:
    return value == value and abs(value) != float("inf")
