"""What every training worker runs: encode, gather, differentiate, step, validate, checkpoint. DeepSpeed inside, no Ray.

A step has two halves. First the workers encode their micro-batches of the global batch and gather all query vectors; each
then computes the same loss and its gradient with respect to the vectors (`step.query_gradients`). Second, each worker
sends the gradient of its own rows through its encoder. With one micro-batch a worker the first pass keeps its graph; with
accumulation the first pass runs without one and each micro-batch is encoded again (gradient caching, Gao et al., arXiv
2101.06983), so memory is that of one micro-batch and the result that of the whole batch.

Which rows form a micro-batch, and the seed of its dropout, depend on the global batch and `micro_batch` alone. So the
number of workers, accumulation and the ZeRO stage change nothing but the order of sums.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from raydistill.config import StudentConfig, TrainConfig, ValidationConfig
from raydistill.conversations.text import history_pairs, student_text
from raydistill.distill.checkpoints import Catalogue, Checkpoint, write_state, write_tensors
from raydistill.distill.engine import (
    Workplace,
    any_worker,
    from_first,
    gathered,
    gathered_on_first,
    learning_rate_share,
    micro_batches,
    set_learning_rate,
    start_engine,
    unclipped_norm,
)
from raydistill.distill.mined import MinedQuery
from raydistill.distill.reading import Reader, ReadyBatch, Tokens, reading_processes, ready_batches
from raydistill.distill.sparsity import Sparsity
from raydistill.distill.step import StepTensors, query_gradients
from raydistill.distill.stream import CandidateStream
from raydistill.distill.validation import Finding, Progress, Validator
from raydistill.distill.whole_state import KINDS, Kind, WholeState, load_parameters
from raydistill.encoders.encoding import sparse_rows
from raydistill.encoders.splade import SpladeModel
from raydistill.encoders.tokens import pad_id, padded, tokenize
from raydistill.errors import TrainingError
from raydistill.storage.artifacts import fingerprint

Record = dict[str, Any]
_CALIBRATION_QUERIES = 256


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of its surroundings; all are called on every worker, after the same steps.

    Attributes:
        log: the record of every step.
        checkpoint: the optimizer step reached, and the trainer to `save`.
        validated: the record of every validation.
        best: a new best step, and the trainer to `save_parameters`; only with validation.keep best.
        preempted: whether this worker knows that it will soon lose its machine. When one says so for the first time, all
            write a checkpoint after that step (`Trainer.preempted` is then True) and go on.
    """

    log: Callable[[Record], None]
    checkpoint: Callable[[int, Trainer], None]
    validated: Callable[[Record], None] = lambda record: None
    best: Callable[[int, Trainer], None] = lambda step, trainer: None
    preempted: Callable[[], bool] = lambda: False


class Trainer:
    """A student, its DeepSpeed engine and its position in the stream.

    Args:
        student: the model to start from, and its text form.
        config: how to train it.
        stream: global batches.
        tokenizer: the student's.
        place: where this worker stands; the process group exists.
        document_share: float32 [V]; share of the index's passages that hold each term.
        teacher_names: the teachers, in the order of the candidates' scores.
        validator: the validation turns; None validates nothing.

    Attributes:
        step: optimizer steps done. steps: of the whole training.
        progress: of the validations.
        preempted: whether a worker was told that it will lose its machine.
    """

    def __init__(
        self,
        student: StudentConfig,
        config: TrainConfig,
        stream: CandidateStream,
        tokenizer: Any,
        place: Workplace,
        document_share: NDArray[np.float32],
        teacher_names: Sequence[str],
        validator: Validator | None = None,
    ) -> None:
        self._student = student
        self._config = config
        self._stream = stream
        self._place = place
        self._tokenizer = tokenizer
        self._document_share = document_share
        self._teacher_names = tuple(teacher_names)
        self._validator = validator
        self.steps = stream.steps(config.epochs)
        self.step = 0
        self.progress = Progress()
        self.preempted = False
        # Settings of a validation that does not take place change nothing: a checkpoint stays good when they change.
        counting = config if validator is not None else config.model_copy(update={"validation": ValidationConfig()})
        self._fingerprint = fingerprint(
            "training state", 1, {"student": student, "train": counting}, {"queries": str(stream.queries)}
        )
        torch.manual_seed(config.seed)
        model = self._starting_model()
        if config.dropout is not None:
            _set_dropout(model, config.dropout)
        groups = model.parameter_groups(config.learning_rate, config.weight_decay, config.head_learning_rate)
        self.engine = start_engine(model, groups, config, place)
        self._whole = WholeState(self.engine)
        self._sparsity = Sparsity(config.regularisation, torch.from_numpy(document_share).to(place.device), self.steps)

    def _starting_model(self) -> SpladeModel:
        model = SpladeModel.from_config(self._student).to(self._place.device)
        if not model.head_has_values:
            texts = [self.text(query) for query in self._stream.sample_queries(_CALIBRATION_QUERIES)]
            model.start_head(texts, self._tokenizer, self._student, self._document_share)
        return model

    def text(self, query: MinedQuery) -> str:
        """Return the student's text form of a mined query."""
        return self._text(query.question, query.history)

    def _text(self, question: str, history: Sequence[tuple[str, str]]) -> str:
        return student_text(question, history, self._student.text, self._tokenizer.sep_token or "")

    def run(self, hooks: Hooks) -> None:
        """Train from the current step to the last, or until validation brings nothing better, calling the hooks.

        Raises TrainingError when the loss is no number, no query has a term left, or sparsity collapses and
        regularisation.on_collapse is stop.
        """
        config, first = self._config, self.step
        reader = Reader(self._stream, self._tokenizer, self._student.text, tuple(self._pieces))
        batches = ready_batches(reader, first, reading_processes(config.readers, self._place.device), "train.readers")
        try:
            while not self.is_over:
                started = time.perf_counter()
                ready = next(batches)
                waited = time.perf_counter() - started
                values = self._train_step(ready)
                self.step += 1
                seconds = time.perf_counter() - started
                advice = self._sparsity.advice()
                record = {**values, "step": self.step, "epoch": ready.batch.epoch, **self._pace(seconds, waited)}
                hooks.log(record if advice is None else {**record, "advice": advice})
                self._check(values, advice)
                if self._validator and (self.step % config.validation.every_steps == 0 or self.step == self.steps):
                    self._validate(self._validator, hooks)
                if self._is_warned(hooks) or self.is_over or self.step % config.checkpoint_steps == 0:
                    hooks.checkpoint(self.step, self)
        finally:
            batches.close()

    @property
    def is_over(self) -> bool:
        """Whether the last step is done, or validation has brought nothing better for long enough."""
        return self.step >= self.steps or self.progress.is_over(self._config.validation.patience)

    def _is_warned(self, hooks: Hooks) -> bool:
        """Return on every worker whether one of them heard of its preemption just now."""
        if self.preempted:
            return False
        self.preempted = any_worker(hooks.preempted(), self._place)
        return self.preempted

    # Checkpoints: every worker calls these, for its share of the work and of the shards.

    def save(self, folder: Path) -> None:
        """Write this worker's part of a checkpoint into an existing folder; rank 0 completes it."""
        config = self._config
        state = {
            "step": self.step,
            "position": self.step * config.global_batch,
            "adam_steps": self._whole.adam_steps,
            "loss_scaler": self._whole.loss_scaler,
            "sparsity": self._sparsity.state(),
            "validation": self.progress.state(),
            "layout": {"workers": self._place.workers, "zero_stage": config.zero_stage, "micro_batch": config.micro_batch},
        }
        catalogue = self._write_tensors(folder, KINDS)
        if catalogue is not None:
            write_state(folder, "training", self._fingerprint, catalogue, state)

    def save_parameters(self, folder: Path) -> None:
        """Write this worker's part of the parameters alone into an existing folder; rank 0 completes it."""
        catalogue = self._write_tensors(folder, KINDS[:1])
        if catalogue is not None:
            write_state(folder, "parameters", self._fingerprint, catalogue, {"step": self.step})

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint that any number of workers wrote in any layout; the folder holds all their files.

        Raises TrainingError when it is damaged or of another training.
        """
        checkpoint = Checkpoint(folder, "training", self._fingerprint, self._shapes(KINDS))
        for name in self._whole.names:
            for kind in KINDS:
                self._whole.write(name, kind, checkpoint.tensor(_key(kind, name)))
        state = checkpoint.state
        self._whole.adam_steps = int(state["adam_steps"])
        self._whole.loss_scaler = state["loss_scaler"]
        self._sparsity.load_state(state["sparsity"])
        self.progress = Progress.of(state["validation"])
        self.step = int(state["step"])

    def full_model(self, best: Path | None = None) -> SpladeModel | None:
        """Return the whole student in float32 on rank 0's CPU, LoRA merged; None on the other workers.

        Args:
            best: folder with the parameters that `save_parameters` wrote; None takes the current ones.
        """
        model = self._starting_model() if self._place.rank == 0 else None
        if best is not None:
            if model is not None:
                found = Checkpoint(best, "parameters", self._fingerprint, self._shapes(KINDS[:1]))
                load_parameters(model, lambda name: found.tensor(_key("parameter", name)))
        else:
            named = dict(model.named_parameters()) if model is not None else {}
            for name in self._whole.names:
                value = self._whole.read(name, "parameter")
                if name in named:
                    with torch.no_grad():
                        named[name].copy_(value)
        return None if model is None else model.merged().eval()

    def _write_tensors(self, folder: Path, kinds: Sequence[Kind]) -> Catalogue | None:
        """Write this worker's share and return the catalogue of all workers on rank 0."""
        mine = write_tensors(folder, self._place.rank, self._own_tensors(kinds))
        parts = gathered_on_first(mine, self._place)
        return Catalogue.joined(parts) if parts else None

    def _own_tensors(self, kinds: Sequence[Kind]) -> Iterator[tuple[str, Tensor]]:
        for number, name in enumerate(self._whole.names):
            for kind in kinds:
                value = self._whole.read(name, kind)
                if number % self._place.workers == self._place.rank:
                    yield _key(kind, name), value

    def _shapes(self, kinds: Sequence[Kind]) -> dict[str, tuple[int, ...]]:
        return {_key(kind, name): self._whole.shape(name) for name in self._whole.names for kind in kinds}

    # One step.

    @property
    def _pieces(self) -> list[slice]:
        return micro_batches(self._config.global_batch, self._config.micro_batch, self._place)

    def _train_step(self, ready: ReadyBatch) -> Record:
        config, batch, pieces = self._config, ready.batch, self._pieces
        share = learning_rate_share(self.step, self.steps, config.warmup_share, config.schedule)
        set_learning_rate(self.engine, share)
        keep_graph = len(pieces) == 1
        with torch.set_grad_enabled(keep_graph):
            vectors = [self._seeded_encode(*piece) for piece in zip(ready.tokens, pieces, strict=True)]
        own = torch.cat([_filled(each.detach(), config.micro_batch) for each in vectors])
        everyone = gathered(own, self._place)[: config.global_batch]
        tensors = StepTensors.of(batch, self._place.device, config.objective)
        gradients, found = query_gradients(everyone, tensors, config.objective, self._teacher_names, self._sparsity)
        values: Record = dict(found)
        # DeepSpeed averages over workers and micro-batches; the loss is already that of the global batch.
        undo_average = self._place.workers * len(pieces)
        norm = None
        for number, rows in enumerate(pieces):
            vector = vectors[number] if keep_graph else self._seeded_encode(ready.tokens[number], rows)
            self.engine.backward((vector * gradients[rows]).sum() * undo_average)
            if number == len(pieces) - 1:
                norm = unclipped_norm(self.engine)
            self.engine.step()
        values["gradient_norm"] = float(self.engine.get_global_grad_norm()) if norm is None else norm
        values["learning_rate"] = config.learning_rate * share
        return values | self._sparsity.advance(everyone, tensors.depth)

    def _seeded_encode(self, tokens: Tokens, rows: slice) -> Tensor:
        """Return the vectors of a micro-batch, float32 [rows, V]; an empty one encodes its text and returns no row."""
        # Seeded by position and not by history: dropout is the same in both passes of a step, for any number of workers
        # and after any resume.
        torch.manual_seed(hash((self._config.seed, self.step, rows.start)) % 2**63)
        return self._encode(*map(torch.from_numpy, tokens))[: rows.stop - rows.start]

    def _encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        vectors: Tensor = self.engine(input_ids.to(self._place.device), attention_mask.to(self._place.device))
        return vectors.float()

    def _check(self, values: Record, advice: str | None) -> None:
        if not np.isfinite(values["loss"]):
            raise TrainingError(
                f"the loss is {values['loss']} at step {self.step}; lower train.learning_rate, or set train.precision "
                "to bf16 or fp32"
            )
        if values["l0"] == 0.0:
            raise TrainingError(
                f"no query has a non-zero term left at step {self.step}, so no gradient can bring one back; lower "
                "train.learning_rate or train.head_learning_rate, or the regularisers' weights"
            )
        if advice is not None and self._config.regularisation.on_collapse == "stop":
            raise TrainingError(advice)

    def _pace(self, seconds: float, waited: float) -> Record:
        if self._place.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._place.device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "queries_per_second": self._config.global_batch / seconds,
            "data_wait_share": waited / seconds,
            "peak_memory_gib": peak / 2**30,
        }

    # Validation.

    def _validate(self, validator: Validator, hooks: Hooks) -> None:
        self.engine.eval()
        mine: list[Finding] = []
        with torch.no_grad():
            for rows in micro_batches(len(validator.turns), self._config.micro_batch, self._place):
                turns = validator.turns[rows] or validator.turns[:1]
                texts = [self._text(turn.question, history_pairs(turn)) for turn in turns]
                ids = tokenize(self._tokenizer, texts, self._student.text.max_tokens)
                vectors = self._encode(*padded(ids, pad_id(self._tokenizer)))
                mine += validator.search(sparse_rows(vectors[: rows.stop - rows.start]))
        self.engine.train()
        findings = [found for part in gathered_on_first(mine, self._place) for found in part]
        values = from_first(validator.values(findings) if self._place.rank == 0 else {}, self._place)
        self._sparsity.validated(values["l0"], values["flops"])
        target = self._config.regularisation.target
        excess = 0.0 if target is None else target.excess(values[target.measure])
        is_best = self.progress.add(self.step, values[self._config.validation.measure], excess)
        hooks.validated({"step": self.step, **values})
        if is_best and self._config.validation.keep == "best":
            hooks.best(self.step, self)


def _key(kind: Kind, name: str) -> str:
    return f"{kind}/{name}"


def _filled(vectors: Tensor, rows: int) -> Tensor:
    """Return [b, V] with rows of zeros added, [rows, V]."""
    return functional.pad(vectors, (0, 0, 0, rows - len(vectors)))


def _set_dropout(model: torch.nn.Module, share: float) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", share)  # noqa: B010 (a plain float attribute, unknown to the type)
