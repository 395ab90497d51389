"""The training stage on Ray Train: workers, checkpoints in the run root, resume by resubmission, export.

Checkpoints lie under {root}/runs/{run}/training/{fingerprint}. Submitting the same configuration again continues from
the newest one, with however many workers there are then; a finished student is an artifact of kind "student" whose parts
are the files of a Hugging Face folder.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from raydistill.actor_pool import require_resources
from raydistill.config import DistillConfig, StudentConfig, TrainConfig, ValidationConfig
from raydistill.conversations.records import ConversationSet
from raydistill.distill.control import CONTROL_VERSION
from raydistill.distill.fitting import Training, Worker, fit
from raydistill.distill.stream import CandidateStream
from raydistill.distill.training_files import BestParameters, Record, Recorder, read_records
from raydistill.encoders.documents import MODEL_FILES, load_tokenizer
from raydistill.errors import TrainingError
from raydistill.index.publish import IndexVersion
from raydistill.model_source import model_identity
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.storage.folders import fetch_folder, put_folder
from raydistill.storage.store import open_store
from raydistill.teachers.combine import Combiner
from raydistill.tracking.training import check_loggers, open_loggers

FORMAT_VERSION = 2


def student_artifact(
    config: DistillConfig,
    candidates: Artifact,
    index: IndexVersion,
    validation: ConversationSet | None = None,
    start: Artifact | None = None,
) -> Artifact:
    """Return the artifact that this training gives, finished or not; see `train`."""
    inputs = {"candidates": candidates.fingerprint, "index": index.fingerprint}
    if start is not None:
        inputs["start"] = start.fingerprint
    else:
        inputs["model"] = model_identity(config.student.model, config.student.revision, MODEL_FILES, "student.model")
    training: TrainConfig = config.train
    if validation is not None:
        inputs["validation"] = validation.fingerprint
    else:
        training = training.model_copy(update={"validation": ValidationConfig()})
    if training.regularisation.target is not None:
        inputs["control"] = str(CONTROL_VERSION)
    settings = {"student": config.student, "train": training}
    return Artifact(config.root, "student", config.run, fingerprint("student", FORMAT_VERSION, settings, inputs))


def train(
    config: DistillConfig,
    candidates: Artifact,
    index: IndexVersion,
    validation: ConversationSet | None = None,
    start: Artifact | None = None,
    title: str = "train",
) -> Artifact:
    """Train the student and export it; returns at once when this very training is finished already.

    Args:
        config: of the run.
        candidates: what mining made of the training turns.
        index: the index it was mined from, and that validation searches.
        validation: held-out conversations with judgements; None validates nothing and keeps the last step.
        start: the student to start from; None starts from `student.model`.
        title: shown beside its progress.

    Raises ConfigError for a logger that is not installed, ResourceError when the cluster cannot hold the workers,
    TrainingError when training fails for good.
    """
    student = student_artifact(config, candidates, index, validation, start)
    if student.find_manifest() is not None:
        return student
    check_loggers(config.train.loggers)
    require_resources(config.train.fewest_workers, "train")
    settings = {
        "config": config.model_dump(mode="json"),
        "candidates": candidates.to_json(),
        "index": index.to_json(),
        "student": student.to_json(),
        "start": None if start is None else start.to_json(),
        "training_prefix": training_prefix(config, student),
        "validation": validation,
    }
    place, limits = f"{config.root}/{settings['training_prefix']}", (config.train.max_failures, config.train.min_workers)
    fit(Training(title, _train, settings, config.train.workers, place, *limits))
    names = sorted(ArtifactWriter(student).finished())
    if "config.json" not in names:
        raise TrainingError(f"training ended without an exported student in {student.uri}; submit the same job again")
    ArtifactWriter(student).commit(names, {"candidates": candidates.fingerprint, "index_version": index.version})
    return student


def training_prefix(config: DistillConfig, student: Artifact) -> str:
    """Return the key prefix, relative to the run root, of checkpoints and metrics of a training."""
    return f"runs/{config.run}/training/{student.fingerprint[:16]}"


def training_records(config: DistillConfig, student: Artifact) -> list[Record]:
    """Return the logged records of a training, in order of steps; [] when there are none (yet)."""
    return read_records(open_store(config.root), training_prefix(config, student), "metrics")


def validation_records(config: DistillConfig, student: Artifact) -> list[Record]:
    """Return the validations of a training in order of steps: step, measures, l0 and flops (also by depth)."""
    return read_records(open_store(config.root), training_prefix(config, student), "validations")


def _train(settings: dict[str, Any], worker: Worker) -> None:
    """What every training worker runs."""
    config = DistillConfig.model_validate(settings["config"])
    with tempfile.TemporaryDirectory(prefix="raydistill-training-") as folder:
        student = config.student
        if settings["start"] is not None:
            place = fetch_folder(Artifact.from_json(settings["start"]), Path(folder) / "start")
            student = student.model_copy(update={"model": str(place), "revision": None})
        _train_in(Path(folder), config, student, settings, worker)


def _train_in(
    folder: Path,
    config: DistillConfig,
    student: StudentConfig,
    settings: dict[str, Any],
    worker: Worker,
) -> None:
    """Train one worker's part, with a folder of its own for files."""
    from raydistill.distill.loop import Hooks, Trainer
    from raydistill.distill.validation import Validator
    from raydistill.index.forward import ForwardVectors, document_share
    from raydistill.index.search import open_searcher

    place, validation = worker.place, settings["validation"]
    tokenizer = load_tokenizer(student.model, student.revision, student.trust_remote_code, "student.model")
    index = IndexVersion.from_json(settings["index"])
    share = document_share(index)
    candidates = Artifact.from_json(settings["candidates"])
    names = candidates.manifest().metadata["teachers"]
    stream = CandidateStream(
        candidates=candidates,
        vectors=ForwardVectors(index),
        sampling=config.train.sampling,
        combination=Combiner(config.train.combine, config.train.weights_of(names)),
        global_batch=config.train.global_batch,
        seed=config.train.seed,
        shuffle_buffer=config.train.shuffle_buffer,
        with_rewrites=config.train.objective.needs_rewrites,
    )
    validator = None
    if validation is not None:
        threads = max(1, int(config.train.workers.cpus))
        validator = Validator(config.train.validation, validation, open_searcher(index, threads), share)
    trainer = Trainer(student, config.train, stream, tokenizer, place, share, names, validator)
    worker.resume(trainer.restore)
    store, prefix = open_store(config.root), settings["training_prefix"]
    best = BestParameters(store, prefix, place, trainer.progress.best_step)
    recorder = None
    if place.rank == 0:
        recorder = _recorder(config, settings, trainer.step, trainer.steps, worker, folder)

    def save_checkpoint(step: int, current: Trainer) -> None:
        def save(written: Path) -> None:
            current.save(written)
            if recorder is not None:
                recorder.write()
            best.checkpointed(current.progress.best_step)

        # The last one is whole before the export begins: started again, that must put the same files.
        worker.checkpoint(step, save, at_once=current.preempted or current.is_over)

    def keep_best(step: int, current: Trainer) -> None:
        with tempfile.TemporaryDirectory() as written:
            current.save_parameters(Path(written))
            best.put(step, Path(written))

    hooks = Hooks(
        log=recorder.log if recorder else lambda record: None,
        checkpoint=save_checkpoint,
        validated=recorder.validated if recorder else lambda record: None,
        best=keep_best,
        preempted=worker.is_preempted,
    )
    try:
        trainer.run(hooks)
    finally:
        # Also of a training that ended in an error: the last records say how it went wrong.
        if recorder is not None:
            recorder.write()
            recorder.close()
    chosen = None
    if validation is not None and config.train.validation.keep == "best":
        assert trainer.progress.best_step is not None
        chosen = folder / "best"
        chosen.mkdir()
        if place.rank == 0:
            best.fetch(trainer.progress.best_step, chosen)
    model = trainer.full_model(chosen)
    if model is not None:
        exported = Artifact.from_json(settings["student"])
        step = trainer.step if chosen is None else trainer.progress.best_step
        measured = next((each for each in validation_records(config, exported) if each["step"] == step), None)
        warn_of_excess(config.train, measured, worker)
        export_student(config, model, tokenizer, exported, measured)


def warn_of_excess(train: TrainConfig, measured: Record | None, worker: Worker) -> None:
    """Say on the driver that the student that is exported does not hold its target."""
    target = train.regularisation.target
    if target is None or measured is None or not target.excess(measured[target.measure]):
        return
    worker.warn(
        f"the student of step {measured['step']:g} exceeds its target: {target.measure} is {measured[target.measure]:.4g} "
        f"on the validation turns, and the target is {target}. Train for more steps (train.epochs), or validate more often "
        "(train.validation.every_steps), by which the controller sees what unseen queries cost"
    )


def _recorder(
    config: DistillConfig, settings: dict[str, Any], first_step: int, steps: int, worker: Worker, folder: Path
) -> Recorder:
    events = folder / "tensorboard"
    events.mkdir()
    identity = Artifact.from_json(settings["student"]).fingerprint[:16]
    loggers = open_loggers(
        config.train.loggers, config.run, identity, config.train.model_dump(mode="json"), events, worker.warn
    )

    def show(step: int, note: str) -> None:
        worker.show(step, steps, note)

    show(first_step, "")
    worker.check_precision(config.train.precision, "train.precision")
    store, log_steps = open_store(config.root), config.train.log_steps
    return Recorder(store, settings["training_prefix"], log_steps, steps, first_step, show, worker.warn, loggers, events)


def export_student(config: DistillConfig, model: Any, tokenizer: Any, student: Artifact, measured: Record | None) -> None:
    """Put the student's Hugging Face folder into the run root, one part a file.

    Args:
        measured: what the validation of these very parameters found; None where there was none.
    """
    from raydistill.distill.model_card import model_card
    from raydistill.encoders.checkpoint import save_student

    with tempfile.TemporaryDirectory() as folder:
        save_student(model, tokenizer, Path(folder), config.student.text, model_card(config, validation=measured))
        put_folder(ArtifactWriter(student), Path(folder))
