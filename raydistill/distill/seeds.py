"""The student of a configuration: one training, or the mean of several that differ in their seed alone.

With few judged turns a seed moves a student about as much as a recipe does. The mean of the parameters of several students
that start alike (`encoders.averaging`) found about as much as the better of them on held-out turns (README), and costs what
one costs when it answers. Each of them is a training and an artifact of its own, the very one that its seed alone would
give: what is there is taken as it is, and a job that ends after the second of three goes on with the third.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from raydistill.config import DistillConfig
from raydistill.conversations.records import ConversationSet
from raydistill.conversations.text import history_pairs, student_text
from raydistill.distill.fitting import Training, Worker, fit
from raydistill.distill.train import (
    export_student,
    student_artifact,
    train,
    training_prefix,
    training_records,
    validation_records,
    warn_of_excess,
)
from raydistill.distill.training_files import Record
from raydistill.errors import TrainingError
from raydistill.index.publish import IndexVersion
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.storage.folders import fetch_folder
from raydistill.storage.store import open_store

FORMAT_VERSION = 1


def planned_student(
    config: DistillConfig,
    candidates: Artifact,
    index: IndexVersion,
    validation: ConversationSet | None = None,
    start: Artifact | None = None,
) -> Artifact:
    """Return the artifact of the student, finished or not; arguments as for `train.train`."""
    trained = [student_artifact(each, candidates, index, validation, start) for each in _by_seed(config)]
    if len(trained) == 1:
        return trained[0]
    inputs = {str(number): each.fingerprint for number, each in enumerate(trained)}
    return Artifact(config.root, "student", config.run, fingerprint("averaged student", FORMAT_VERSION, {}, inputs))


def train_student(
    config: DistillConfig,
    candidates: Artifact,
    index: IndexVersion,
    validation: ConversationSet | None = None,
    start: Artifact | None = None,
) -> Artifact:
    """Train what is not trained yet, average it where there is more than one, and return the student.

    Arguments and errors as for `train.train`.
    """
    student = planned_student(config, candidates, index, validation, start)
    if student.find_manifest() is not None:
        return student
    configs = _by_seed(config)
    trained = [
        train(each, candidates, index, validation, start, _title(number, len(configs)))
        for number, each in enumerate(configs, start=1)
    ]
    if len(trained) > 1:
        _average(config, trained, student, index, validation)
    return student


def student_records(config: DistillConfig, student: Artifact) -> tuple[list[Record], list[Record]]:
    """Return the records of training steps and of validations, in order of steps; [] where there are none (yet).

    Of several trainings they are the mean of those that reached a step; the last validation is then the student's own.
    """
    manifest = student.find_manifest()
    seeds = (manifest.metadata.get("seeds") or []) if manifest is not None else []
    if not seeds:
        return training_records(config, student), validation_records(config, student)
    trained = [Artifact(student.root, "student", student.name, each) for each in seeds]
    own = {record["step"]: record for record in validation_records(config, student)}
    validations = {record["step"]: record for record in _mean_records(config, trained, validation_records)} | own
    return _mean_records(config, trained, training_records), [validations[step] for step in sorted(validations)]


def _by_seed(config: DistillConfig) -> list[DistillConfig]:
    """Return one configuration a training: that of its seed alone."""
    first, number = config.train.seed, config.train.averaged_seeds
    return [
        config.model_copy(update={"train": config.train.model_copy(update={"seed": seed, "averaged_seeds": 1})})
        for seed in range(first, first + number)
    ]


def _title(number: int, trainings: int) -> str:
    return "train" if trainings == 1 else f"train {number} of {trainings}"


def _mean_records(
    config: DistillConfig, trained: list[Artifact], read: Callable[[DistillConfig, Artifact], list[Record]]
) -> list[Record]:
    by_step: dict[float, list[Record]] = {}
    for each in trained:
        for record in read(config, each):
            by_step.setdefault(record["step"], []).append(record)
    return [_mean_record(by_step[step]) for step in sorted(by_step)]


def _mean_record(records: list[Record]) -> Record:
    """Return the mean of every number that all records have, and the first advice that one has."""
    shared = [name for name in records[0] if all(isinstance(each.get(name), int | float) for each in records)]
    mean: Record = {name: sum(each[name] for each in records) / len(records) for name in shared}
    mean["step"] = records[0]["step"]
    advice = next((each["advice"] for each in records if "advice" in each), None)
    return mean if advice is None else {**mean, "advice": advice}


def _average(
    config: DistillConfig,
    trained: list[Artifact],
    student: Artifact,
    index: IndexVersion,
    validation: ConversationSet | None,
) -> None:
    """Put the mean of the trained students, validated where they were, and commit it."""
    steps = max((record["step"] for each in trained for record in training_records(config, each)), default=0)
    settings = {
        "config": config.model_dump(mode="json"),
        "trained": [each.to_json() for each in trained],
        "index": index.to_json(),
        "student": student.to_json(),
        "validation": validation,
        "steps": steps,
    }
    workers = config.train.workers.model_copy(update={"actors": 1})
    place = f"{config.root}/{training_prefix(config, student)}"
    fit(Training(f"mean of {len(trained)}", _average_in, settings, workers, place, config.train.max_failures))
    names = sorted(ArtifactWriter(student).finished())
    if "config.json" not in names:
        raise TrainingError(f"averaging ended without an exported student in {student.uri}; submit the same job again")
    metadata = {**trained[0].manifest().metadata, "seeds": [each.fingerprint for each in trained]}
    ArtifactWriter(student).commit(names, metadata)


def _average_in(settings: dict[str, Any], worker: Worker) -> None:
    """What the one worker runs that averages."""
    from raydistill.encoders.averaging import mean_model
    from raydistill.encoders.checkpoint import Student, load_student

    config, student = DistillConfig.model_validate(settings["config"]), Artifact.from_json(settings["student"])
    with tempfile.TemporaryDirectory(prefix="raydistill-mean-") as folder:
        loaded: list[Student] = []

        def models() -> Iterator[Any]:
            for number, fields in enumerate(settings["trained"]):
                place = fetch_folder(Artifact.from_json(fields), Path(folder) / str(number))
                found = load_student(place, config.student.trust_remote_code)
                loaded[:] = loaded or [found]
                yield found.model

        model = mean_model(models())
        tokenizer = loaded[0].tokenizer
        measured = None
        if settings["validation"] is not None:
            measured = {"step": settings["steps"], **_validate(config, model, tokenizer, settings, worker)}
            line = json.dumps(measured) + "\n"
            prefix = training_prefix(config, student)
            open_store(config.root).replace(f"{prefix}/validations/{0:08d}.jsonl", line.encode())
            warn_of_excess(config.train, measured, worker)
        export_student(config, model.to("cpu"), tokenizer, student, measured)


def _validate(
    config: DistillConfig, model: Any, tokenizer: Any, settings: dict[str, Any], worker: Worker
) -> dict[str, float]:
    from raydistill.distill.validation import Validator
    from raydistill.encoders.splade import SpladeEncoder
    from raydistill.index.forward import document_share
    from raydistill.index.search import open_searcher

    index, text = IndexVersion.from_json(settings["index"]), config.student.text
    searcher = open_searcher(index, max(1, int(config.train.workers.cpus)))
    validator = Validator(config.train.validation, settings["validation"], searcher, document_share(index))
    separator = tokenizer.sep_token or ""
    texts = [student_text(turn.question, history_pairs(turn), text, separator) for turn in validator.turns]
    encoder = SpladeEncoder(model, tokenizer, text.max_tokens, device=worker.place.device)
    return validator.values(validator.search(encoder.encode_queries(texts)))
