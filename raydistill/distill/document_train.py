"""The stage that trains a document encoder on Ray: first stage, examples, Ray Train, export.

It comes before the index, and only where `index.documents.kind` is learned. Checkpoints lie under
{root}/runs/{run}/documents/{fingerprint}; submitting the same configuration again continues from the newest one. The
result is an artifact of kind "document-encoder" whose parts are the files of an ordinary student folder, frozen from
then on: it encodes the passages and the teachers' rewrites.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raydistill.actor_pool import require_resources
from raydistill.config import DistillConfig, LearnedDocumentsConfig, TextConfig
from raydistill.conversations.records import ConversationalQuery
from raydistill.distill.document_mining import examples_artifact, first_stage, make_examples
from raydistill.distill.fitting import Training, Worker, fit
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

FORMAT_VERSION = 2  # 2: sentences are shuffled over many parts of the corpus
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
    place = f"{config.root}/{documents_prefix(config, encoder)}"
    fit(Training("documents", _train, settings, training.workers, place, training.max_failures))
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


def _train(settings: dict[str, Any], worker: Worker) -> None:
    """What every training worker runs."""
    from raydistill.distill.document_loop import DocumentTrainer
    from raydistill.distill.document_stream import DocumentStream
    from raydistill.index.passage_texts import PassageTexts

    config = DistillConfig.model_validate(settings["config"])
    documents = _documents(config)
    corpus, stage = Artifact.from_json(settings["corpus"]), IndexVersion.from_json(settings["stage"])
    encoder = Artifact.from_json(settings["encoder"])
    stream = DocumentStream(
        Artifact.from_json(settings["examples"]),
        documents.training,
        PassageTexts(corpus, passage_parts(corpus.manifest())),
        load_document_encoder(first_stage(config.index).documents, config.student, stage.open_statistics()),
    )
    tokenizer = load_tokenizer(documents.model, documents.revision, documents.trust_remote_code, "index.documents.model")
    trainer = DocumentTrainer(documents, stream, tokenizer, worker.place, encoder.fingerprint)
    worker.resume(trainer.restore)
    with tempfile.TemporaryDirectory(prefix="raydistill-documents-") as folder:
        recorder = _recorder(config, encoder, trainer, worker, Path(folder)) if worker.place.rank == 0 else None

        def save_checkpoint(current: DocumentTrainer) -> None:
            def save(written: Path) -> None:
                current.save(written)
                if recorder is not None:
                    recorder.write()

            # The last one is whole before the export begins: started again, that must put the same files.
            worker.checkpoint(current.step, save, at_once=current.step == current.steps)

        trainer.run(recorder.log if recorder is not None else lambda record: None, save_checkpoint)
        model = trainer.full_model()
        if model is not None:
            _export(config, model, tokenizer, encoder)


def _recorder(config: DistillConfig, encoder: Artifact, trainer: Any, worker: Worker, events: Path) -> Recorder:
    def show(step: int, note: str) -> None:
        worker.show(step, trainer.steps, note)

    show(trainer.step, "")
    worker.check_precision(_documents(config).training.precision, "index.documents.training.precision")
    store, prefix = open_store(config.root), documents_prefix(config, encoder)
    log_steps = _documents(config).training.log_steps
    return Recorder(store, prefix, log_steps, trainer.steps, trainer.step, show, worker.warn, [], events)


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
