"""What a training process of the loop's tests does: train as told by a specification and leave what came out in a folder."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from raydistill.config import StudentConfig, TextConfig, TrainConfig
from raydistill.distill.engine import Workplace
from raydistill.distill.loop import Hooks, Record, Trainer
from raydistill.distill.stream import CandidateStream
from raydistill.distill.validation import Validator
from raydistill.index.forward import ForwardVectors, document_share
from raydistill.index.publish import IndexVersion
from raydistill.index.search import open_searcher
from raydistill.storage.artifacts import Artifact
from raydistill.teachers.combine import Combiner


def train(rank: int, workers: int, spec: dict[str, Any]) -> None:
    """Train one worker's part.

    Args:
        spec: candidates, index, encoder, train (fields of TrainConfig), folder; and, each if wanted, resume (a checkpoint),
            turns (a ConversationSet to validate on), kill_after_step (this worker dies by SIGKILL), preempt_after_step (the
            last worker sends itself SIGUSR1, its notice of preemption).
    """
    from transformers import AutoTokenizer

    folder = Path(spec["folder"])
    notices: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: notices.append(number))
    trainer = _trainer(rank, workers, spec, AutoTokenizer.from_pretrained(spec["encoder"]))
    if "resume" in spec:
        trainer.restore(Path(spec["resume"]))
    records: list[Record] = []
    validations: list[Record] = []

    def log(record: Record) -> None:
        records.append(record)
        if rank == workers - 1 and record["step"] == spec.get("preempt_after_step"):
            os.kill(os.getpid(), signal.SIGUSR1)
        if record["step"] == spec.get("kill_after_step"):
            os.kill(os.getpid(), signal.SIGKILL)

    def save(name: str) -> Path:
        (folder / name).mkdir(exist_ok=True)
        return folder / name

    trainer.run(
        Hooks(
            log=log,
            checkpoint=lambda step, current: current.save(save(f"checkpoint-{step}")),
            validated=validations.append,
            best=lambda step, current: current.save_parameters(save("best")),
            preempted=lambda: bool(notices),
        )
    )
    trainer.save_parameters(save("parameters"))
    best = folder / "best" if (folder / "best").is_dir() else None
    model = trainer.full_model(best)
    if model is not None:
        torch.save({name: value.numpy() for name, value in model.state_dict().items()}, folder / "model.pt")
        answer = {"records": records, "validations": validations, "progress": trainer.progress.state()}
        (folder / "answer.json").write_text(json.dumps(answer))


def _trainer(rank: int, workers: int, spec: dict[str, Any], tokenizer: Any) -> Trainer:
    config = TrainConfig.model_validate(spec["train"])
    student = StudentConfig(model=spec["encoder"], text=TextConfig(max_tokens=64), **spec.get("student", {}))
    index = IndexVersion.from_json(spec["index"])
    share = document_share(index)
    stream = CandidateStream(
        Artifact.from_json(spec["candidates"]),
        ForwardVectors(index),
        config.sampling,
        Combiner(config.combine),
        config.global_batch,
        config.seed,
        config.shuffle_buffer,
        config.objective.needs_rewrites,
    )
    validator = None
    if "turns" in spec:
        validator = Validator(config.validation, spec["turns"], open_searcher(index), share)
    place = Workplace(rank, workers, torch.device("cpu"))
    return Trainer(student, config, stream, tokenizer, place, share, ("a", "b"), validator)


def answer(folder: Path) -> dict[str, Any]:
    """Return what rank 0 left: records, validations, progress."""
    found: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return found


def parameters(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of a checkpoint folder by key."""
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}
