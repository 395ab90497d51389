"""Where a finished student comes from: a folder, a model inside a package, or the address of a student artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.errors import ConfigError
from raydistill.model_source import model_identity, resolve_model
from raydistill.storage.students import laid_out, student_artifact

if TYPE_CHECKING:
    from raydistill.encoders.checkpoint import Student


def open_student(source: str, trust_remote_code: bool = False) -> Student:
    """Return a loaded student. Raises ConfigError when there is none, StorageError when an artifact is not complete."""
    # Imported here: it needs torch.
    from raydistill.encoders.checkpoint import load_student

    artifact = student_artifact(source)
    folder = student_folder(source) if artifact is None else laid_out(artifact)
    return load_student(folder, trust_remote_code)


def student_identity(source: str) -> str:
    """Return what identifies a student for fingerprints, wherever it lies. Raises as `open_student`."""
    artifact = student_artifact(source)
    return model_identity(student_folder(source)) if artifact is None else artifact.fingerprint


def student_folder(source: str) -> str:
    """Return the local folder of a student that is no artifact. Raises ConfigError when there is none."""
    folder = resolve_model(source, "student")
    if not Path(folder).is_dir():
        raise ConfigError(f"student: {source!r} is neither a folder nor the address of a student artifact")
    return folder
