"""The stage that trains a document encoder on Ray: first stage, examples, Ray Train, export.

It comes before the index, and only where `index.documents.kind` is learned. Checkpoints lie under
{root}/runs/{run}/documents/{fingerprint}; submitting the same configuration again continues from the newest one. The
result is an artifact of kind "document-encoder" whose parts are the files of an ordinary student folder, frozen from
then on: it encodes the passages and the teachers' rewrites.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raydistill.actor_pool import require_resources
from raydistill.config import DistillConfig, LearnedDocumentsConfig, TextConfig
from raydistill.conversations.records import ConversationalQuery
from raydistill.distill.document_mining import examples_artifact, first_stage, make_examples
from raydistill.distill.fitting import fit, reporting_failures, start_board
from raydistill.distill.training_files import Record, Recorder, read_records
from raydistill.encoders.documents import MODEL_FILES, load_document_encoder, load_tokenizer
from raydistill.errors import TrainingError
from raydistill.index.build import build_index
from raydistill.index.corpus import passage_parts
from raydistill.index.publish import IndexVersion
from raydistill.model_source import model_identity
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.storage.folders import put_folder
from raydistill.storage.store import open_store

FORMAT_VERSION = 1
Qrels = Mapping[str, Mapping[str, int]]


def learned_documents(config: DistillConfig) -> LearnedDocumentsConfig | None:
    """Return the section of a document encoder that is to be trained; None for the other kinds."""
    documents = config.index.documents
    return documents if isinstance(documents, LearnedDocumentsConfig) else None


def document_encoder_artifact(
    config: DistillConfig, turns: Sequence[ConversationalQuery], qrels: Qrels, corpus: Artifact
) -> Artifact:
    """Return the artifact that training the configured document encoder gives, finished or not.

    Args:
        config: with index.documents of kind learned.
        turns: from `document_examples.training_turns`.
        qrels: judgements of those turns.
        corpus: the corpus artifact; it need not be there yet.
    """
    documents = _documents(config)
    training = documents.training
    settings: dict[str, Any] = {
        "head": documents.head,
        "active_share": documents.active_share if documents.head == "identity" else None,
        "max_tokens": documents.max_tokens,
        "training": training,
    }
    later = {"pooling": documents.pooling, "top_terms": documents.top_terms}
    settings |= {name: value for name, value in later.items() if value is not None}
    inputs = {
        "examples": examples_artifact(config, turns, qrels, corpus).fingerprint,
        "model": model_identity(documents.model, documents.revision, MODEL_FILES, "index.documents.model"),
    }
    if training.dense_teacher is not None:
        dense = training.dense_teacher
        field = "index.documents.training.dense_teacher.model"
        inputs["dense_teacher"] = model_identity(dense.model, dense.revision, MODEL_FILES, field)
    name = fingerprint("document-encoder", FORMAT_VERSION, settings, inputs)
    return Artifact(config.root, "document-encoder", config.index.name, name)


def with_trained_encoder(config: DistillConfig, encoder: Artifact) -> DistillConfig:
    """Return the configuration whose document encoder is the trained one: what the stages after this one work with."""
    documents = _documents(config).model_copy(update={"trained": encoder.to_json()})
    return config.model_copy(update={"index": config.index.model_copy(update={"documents": documents})})


def train_documents(config: DistillConfig, turns: Sequence[ConversationalQuery], qrels: Qrels, corpus: Artifact) -> Artifact:
    """Train the document encoder and export it; returns at once when this very training is finished already.

    Arguments as for `document_encoder_artifact`; the corpus is there.

    Raises ResourceError when the cluster cannot hold the workers, DataError when runs and data do not belong together,
    TrainingError when training fails for good.
    """
    encoder = document_encoder_artifact(config, turns, qrels, corpus)
    if encoder.find_manifest() is not None:
        return encoder
    training = _documents(config).training
    require_resources(training.workers, "index.documents.training")
    stage = build_index(first_stage(config.index), config.student, corpus, config.root)
    examples = make_examples(config, turns, qrels, corpus, stage)
    settings = {
        "config": config.model_dump(mode="json"),
        "corpus": corpus.to_json(),
        "examples": examples.to_json(),
        "stage": stage.to_json(),
        "encoder": encoder.to_json(),
    }
    board = start_board()
    workers = training.workers
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"settings": json.dumps(settings), "board": board},
        scaling_config=ScalingConfig(
            num_workers=workers.actors,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if workers.gpus > 0 else "gloo"),
        run_config=RunConfig(
            name=encoder.fingerprint[:16],
            storage_path=f"{config.root.removeprefix('file://')}/runs/{config.run}/documents",
            failure_config=FailureConfig(max_failures=training.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    fit(trainer, board, "documents")
    names = sorted(ArtifactWriter(encoder).finished())
    if "config.json" not in names:
        raise TrainingError(f"training ended without an exported encoder in {encoder.uri}; submit the same job again")
    ArtifactWriter(encoder).commit(names, {"examples": examples.fingerprint, "steps": training.steps})
    return encoder


def documents_prefix(config: DistillConfig, encoder: Artifact) -> str:
    """Return the key prefix, relative to the run root, of checkpoints and metrics of a document encoder's training."""
    return f"runs/{config.run}/documents/{encoder.fingerprint[:16]}"


def document_records(config: DistillConfig, encoder: Artifact) -> list[Record]:
    """Return the logged records of a document encoder's training, in order of steps."""
    return read_records(open_store(config.root), documents_prefix(config, encoder), "metrics")


def _documents(config: DistillConfig) -> LearnedDocumentsConfig:
    documents = learned_documents(config)
    assert documents is not None
    return documents


def _train_worker(loop_config: dict[str, Any]) -> None:
    """Entry of every training worker."""
    reporting_failures(_train, loop_config)


def _train(loop_config: dict[str, Any]) -> None:
    import torch

    from raydistill.distill.document_loop import DocumentTrainer
    from raydistill.distill.document_stream import DocumentStream
    from raydistill.distill.engine import Workplace
    from raydistill.index.passage_texts import PassageTexts

    settings = json.loads(loop_config["settings"])
    config = DistillConfig.model_validate(settings["config"])
    documents = _documents(config)
    workers = documents.training.workers
    if workers.gpus == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(max(1, int(workers.cpus)))
    context = ray.train.get_context()
    device = ray.train.torch.get_device() if workers.gpus > 0 else torch.device("cpu")
    place = Workplace(context.get_world_rank(), context.get_world_size(), device)
    corpus, stage = Artifact.from_json(settings["corpus"]), IndexVersion.from_json(settings["stage"])
    encoder = Artifact.from_json(settings["encoder"])
    stream = DocumentStream(
        Artifact.from_json(settings["examples"]),
        documents.training,
        PassageTexts(corpus, passage_parts(corpus.manifest())),
        load_document_encoder(first_stage(config.index).documents, config.student, stage.open_statistics()),
    )
    tokenizer = load_tokenizer(documents.model, documents.revision, documents.trust_remote_code, "index.documents.model")
    trainer = DocumentTrainer(documents, stream, tokenizer, place, encoder.fingerprint)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as found:
            trainer.restore(Path(found))
    with tempfile.TemporaryDirectory(prefix="raydistill-documents-") as folder:
        recorder = _recorder(config, encoder, trainer, loop_config["board"], Path(folder)) if place.rank == 0 else None

        def save_checkpoint(current: DocumentTrainer) -> None:
            written = tempfile.mkdtemp(prefix="raydistill-checkpoint-")
            current.save(Path(written))
            if recorder is not None:
                recorder.write()
            ray.train.report(
                {"step": current.step},
                checkpoint=ray.train.Checkpoint.from_directory(written),
                checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
                delete_local_checkpoint_after_upload=True,
            )

        trainer.run(recorder.log if recorder is not None else lambda record: None, save_checkpoint)
        model = trainer.full_model()
        if model is not None:
            _export(config, model, tokenizer, encoder)


def _recorder(config: DistillConfig, encoder: Artifact, trainer: Any, board: Any, events: Path) -> Recorder:
    def show(step: int, note: str) -> None:
        board.write.remote(step, trainer.steps, note)

    show(trainer.step, "")
    store, prefix = open_store(config.root), documents_prefix(config, encoder)
    log_steps = _documents(config).training.log_steps
    return Recorder(store, prefix, log_steps, trainer.steps, trainer.step, show, [], events)


def _export(config: DistillConfig, model: Any, tokenizer: Any, encoder: Artifact) -> None:
    """Put the encoder's Hugging Face folder into the run root, one part a file."""
    from raydistill.encoders.checkpoint import save_student

    documents = _documents(config)
    with tempfile.TemporaryDirectory() as folder:
        text = TextConfig(max_tokens=documents.max_tokens)
        save_student(model, tokenizer, Path(folder), text, _card(config.run, documents))
        put_folder(ArtifactWriter(encoder), Path(folder))


def _card(run: str, documents: LearnedDocumentsConfig) -> str:
    training = documents.training
    runs = ", ".join(each.name for each in training.runs) or "none"
    dense = "none" if training.dense_teacher is None else f"`{training.dense_teacher.model}`"
    return f"""# {run}: document encoder

A sparse encoder of passages and of self-contained queries, trained by raydistill and frozen for the distillation of its
student. One encoder reads both; scores are dot products.

| | |
|---|---|
| starting point | `{documents.model}`, {documents.head} head |
| recorded runs | {runs} |
| dense teacher | {dense} |
| objective | `{training.objective}` |
| training | {training.steps} steps of {training.global_batch} queries with {training.passages} passages each |
| text | {documents.max_tokens} tokens |
"""
