"""Room for engines that reserve GPUs by placement groups of their own, checked and given back around a stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from raydistill.config import GeneratingTeacherConfig, VllmTeacherConfig
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
