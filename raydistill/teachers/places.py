"""What engines hold beside their workers: GPUs by placement groups of their own, checked and given back around a stage, and
the limits of an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event

from raydistill.config import GeneratingTeacherConfig, OpenAiTeacherConfig, VllmTeacherConfig, WorkerConfig
from raydistill.side_by_side import Pool
from raydistill.storage.artifacts import Artifact


def group_name(artifact: Artifact) -> str:
    """Return what the names of the placement groups begin with whose engines make an artifact."""
    return f"{artifact.name}-{artifact.fingerprint[:16]}"


@contextmanager
def held_places(llm: GeneratingTeacherConfig | None, tasks: int, artifact: Artifact) -> Iterator[None]:
    """Check that a model's engines find room for some tasks, and remove their placement groups whatever happens.

    Args:
        llm: the model; None, or one whose engine lives in its worker, needs nothing.
        artifact: what they make.

    Raises ResourceError when the cluster can never hold them.
    """
    if not isinstance(llm, VllmTeacherConfig) or not tasks:
        yield
        return
    from raydistill.teachers.engine_actor import remove_groups, require_places

    require_places(min(llm.workers.actors, tasks), llm.tensor_parallel_size, llm.name)
    try:
        yield
    finally:
        remove_groups(group_name(artifact))


def pool_of(name: str, llm: GeneratingTeacherConfig | None, workers: WorkerConfig, run: Callable[[Event], None]) -> Pool:
    """Return the pool of a model's workers with all that it holds.

    Args:
        llm: the model; None, or one whose engine lives in its worker, holds no more than its workers.
    """
    if isinstance(llm, VllmTeacherConfig):
        # All of them from the start: one that finds no room for its engine does not wait for long.
        held = WorkerConfig(actors=workers.actors, cpus=workers.cpus, gpus=float(llm.tensor_parallel_size))
        return Pool(name, held, run, packed=True)
    if isinstance(llm, OpenAiTeacherConfig) and (llm.requests_per_minute or llm.tokens_per_minute):
        return Pool(name, workers, run, limit=llm.base_url)
    return Pool(name, workers, run)
