"""Checks that cost seconds, before anything that costs hours: inputs, store, models, loggers, and room on the cluster."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from raydistill.actor_pool import require_resources, require_shared_root
from raydistill.config import (
    DistillConfig,
    DocumentsConfig,
    LearnedDocumentsConfig,
    LexicalDocumentsConfig,
    LlmScorerConfig,
    OpenAiTeacherConfig,
    RecordedTeacherConfig,
    SeismicEngine,
    SpladeDocumentsConfig,
    StudentConfig,
    VllmTeacherConfig,
)
from raydistill.conversations.prepared import corpus_files
from raydistill.encoders.documents import check_positions, check_vocabulary, load_term_counter
from raydistill.encoders.student_source import student_identity
from raydistill.errors import ConfigError, RaydistillError
from raydistill.inputs import RunInputs
from raydistill.model_source import model_config
from raydistill.storage.artifacts import Artifact
from raydistill.storage.files import input_files
from raydistill.storage.probe import check_root
from raydistill.teachers.engine_actor import require_places
from raydistill.tracking.training import check_loggers


def check_inputs(config: DistillConfig, inputs: RunInputs) -> None:
    """Raise when an input is missing or malformed, the store is unfit, a model cannot be loaded or a package is missing."""
    check_root(config.root, config.single_writer)
    check_loggers(config.train.loggers)
    if isinstance(config.evaluate.engine, SeismicEngine):
        from raydistill.index.seismic import seismic_library

        seismic_library()
    corpus_files(config.data.corpus, config.data.corpus_format)
    inputs.check()
    _check_target(config, load_term_counter(config.student).vocabulary_size)
    documents = config.index.documents
    check_positions(config.student, documents)
    if isinstance(documents, LearnedDocumentsConfig):
        _check_learned(documents, config.student)
    _check_starts(config.student, documents)
    if config.evaluate.rerank is not None:
        # Imported here: it needs torch.
        from raydistill.reranking.cross_encoder import check_cross_encoder

        check_cross_encoder(config.evaluate.rerank, "evaluate.rerank")
    for teacher in config.teachers:
        if not isinstance(teacher, RecordedTeacherConfig) and teacher.spend is not None and teacher.spend.student:
            try:
                student_identity(teacher.spend.student)
            except RaydistillError as error:
                raise ConfigError(f"teachers.{teacher.name}.spend.{error}") from error
    for scorer in config.scorers:
        # Imported here: it needs torch.
        from raydistill.scoring.opening import check_scorer

        check_scorer(scorer)


def check_scoring_endpoints(config: DistillConfig) -> None:
    """Raise ConfigError when the endpoint of a scorer cannot be used."""
    from raydistill.teachers.engines import check_teacher

    for scorer in config.scorers:
        if isinstance(scorer, LlmScorerConfig):
            check_teacher(scorer.llm, f"scorers.{scorer.name}.llm")


def check_endpoints(config: DistillConfig, planned: Callable[[], Mapping[str, Mapping[str, Artifact]]]) -> None:
    """Raise ConfigError when the endpoint or the model of a teacher that has something left to write cannot be used.

    Args:
        planned: gives the artifacts of all rewrites, computed or not: set name -> teacher -> artifact.
    """
    asked = [teacher for teacher in config.teachers if not isinstance(teacher, RecordedTeacherConfig)]
    if not asked:
        return
    # Imported here: it needs an HTTP client.
    from raydistill.teachers.engines import check_teacher

    sets = planned().values()
    for teacher in asked:
        if all(artifacts[teacher.name].find_manifest() is not None for artifacts in sets):
            continue
        if isinstance(teacher, OpenAiTeacherConfig):
            check_teacher(teacher)
        else:
            model_config(teacher.model, teacher.revision, teacher.trust_remote_code, f"teachers.{teacher.name}.model")


def _check_target(config: DistillConfig, vocabulary_size: int) -> None:
    """Raise ConfigError when no query could ever exceed the sparsity target: neither L0 nor FLOPS passes the vocabulary."""
    target = config.train.regularisation.target
    if target is not None and target.bound >= vocabulary_size:
        raise ConfigError(
            f"train.regularisation.target is {target}, and the student's vocabulary has {vocabulary_size} terms, so every "
            "query holds it and it would change nothing; lower the bound, or leave the target out"
        )


def check_workers(config: DistillConfig, stages: Collection[str]) -> None:
    """Raise ResourceError when the connected cluster can never hold the workers of one of the stages.

    Shards decide how many actors the other stages start, so one must fit; the training stages need all of theirs, or
    train.min_workers of them.
    """
    require_shared_root(config.root)
    documents = config.index.documents
    if "teach" in stages:
        for teacher in config.teachers:
            if not isinstance(teacher, RecordedTeacherConfig):
                require_resources(teacher.workers.model_copy(update={"actors": 1}), f"teachers.{teacher.name}")
            if isinstance(teacher, VllmTeacherConfig):
                require_places(1, teacher.tensor_parallel_size, teacher.name)
    if "score" in stages:
        for scorer in config.scorers:
            require_resources(scorer.workers.model_copy(update={"actors": 1}), f"scorers.{scorer.name}")
            if isinstance(scorer, LlmScorerConfig) and isinstance(scorer.llm, VllmTeacherConfig):
                require_places(1, scorer.llm.tensor_parallel_size, scorer.name)
    for stage, workers in (
        ("index", config.index.workers),
        ("score", config.score.workers),
        ("evaluate", config.evaluate.workers),
    ):
        if stage in stages:
            require_resources(workers.model_copy(update={"actors": 1}), stage)
    if "evaluate" in stages and config.evaluate.rerank is not None:
        require_resources(config.evaluate.rerank.workers.model_copy(update={"actors": 1}), "evaluate.rerank")
    if "train" in stages:
        require_resources(config.train.fewest_workers, "train")
    if "documents" in stages and isinstance(documents, LearnedDocumentsConfig):
        require_resources(documents.training.workers, "documents")


def _check_starts(student: StudentConfig, documents: DocumentsConfig) -> None:
    """Raise ConfigError when the student or the document encoder cannot be made of the model that it starts from."""
    # Imported here: the driver needs torch for nothing else.
    from raydistill.encoders.checkpoint import check_start

    if not isinstance(documents, LexicalDocumentsConfig):
        check_vocabulary(documents, student)
    if isinstance(documents, SpladeDocumentsConfig):
        read_as = {
            "model": documents.model,
            "revision": documents.revision,
            "pooling": documents.pooling,
            "trust_remote_code": documents.trust_remote_code,
        }
        check_start(StudentConfig(**read_as), "index.documents")
    elif isinstance(documents, LearnedDocumentsConfig):
        check_start(documents.starting_model(), "index.documents")
        if documents.starts_student:
            trained = {"model": documents.model, "revision": documents.revision}
            student = student.model_copy(update={**trained, "trust_remote_code": documents.trust_remote_code})
    check_start(student)


def _check_learned(documents: LearnedDocumentsConfig, student: StudentConfig) -> None:
    for run in documents.training.runs:
        input_files([run.run, *([run.rewrites] if run.rewrites else [])])
    if documents.training.dense_teacher is not None:
        # Imported here: it needs torch.
        from raydistill.encoders.dense import check_dense_encoder

        check_dense_encoder(documents.training.dense_teacher, "index.documents.training.dense_teacher")
    if not documents.starts_student:
        return
    if documents.head != student.head:
        raise ConfigError(
            f"index.documents.starts_student is true, but index.documents.head is {documents.head} and student.head is "
            f"{student.head}; give both the same head, or set index.documents.starts_student: false"
        )
    if student.pooling not in (None, documents.pooling):
        raise ConfigError(
            f"index.documents.starts_student is true, but student.pooling is {student.pooling} and index.documents.pooling "
            f"is {documents.pooling or 'left out'}; leave student.pooling out, and the student pools as that encoder does"
        )
