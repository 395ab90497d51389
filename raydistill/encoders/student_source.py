"""Where a finished student comes from: a folder, a model inside a package, or the address of a student artifact."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.errors import ConfigError, StorageError
from raydistill.model_source import model_identity, resolve_model
from raydistill.storage.artifacts import Artifact, Manifest
from raydistill.storage.cache import default_cache
from raydistill.storage.folders import fetch_folder
from raydistill.storage.hashing import canonical_json, sha256_hex, unsealed
from raydistill.storage.store import open_store

if TYPE_CHECKING:
    from raydistill.encoders.checkpoint import Student

_ARTIFACTS = "/artifacts/"


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


def student_artifact(source: str) -> Artifact | None:
    """Return the artifact that an address names, ROOT/artifacts/student/NAME-FINGERPRINT; None for what is no such address.

    Raises StorageError when nothing complete is there.
    """
    root, found, rest = source.partition(_ARTIFACTS)
    if not found or (Path(source).is_dir() and (Path(source) / "config.json").is_file()):
        return None
    key = f"{_ARTIFACTS.strip('/')}/{rest.strip('/')}/_manifest.json"
    store = open_store(root)
    if store.info(key) is None:
        raise StorageError(f"{source} is no complete student (no _manifest.json there); give the address that train printed")
    manifest = Manifest.from_json(unsealed(store.read(key), f"{store.root}/{key}"))
    return Artifact(root, manifest.kind, manifest.name, manifest.fingerprint)


def laid_out(student: Artifact) -> Path:
    """Return a folder of this machine with a student's files, laid out when it is first asked for; never write to it.

    It lies in the cache's folder, not counted by its bound: a small copy of a student that runs start from or serve.
    """
    # By content: the same training elsewhere gives the same fingerprint and, on other hardware, not quite the same weights.
    parts = sorted((part.name, part.sha256) for part in student.manifest().parts)
    folder = default_cache().directory / "students" / sha256_hex(canonical_json(parts).encode())
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as made:
            fetch_folder(student, Path(made) / "student")
            with suppress(OSError):  # another process was first: its folder has the same files
                (Path(made) / "student").rename(folder)
    return folder


def student_folder(source: str) -> str:
    """Return the local folder of a student that is no artifact. Raises ConfigError when there is none."""
    folder = resolve_model(source, "student")
    if not Path(folder).is_dir():
        raise ConfigError(f"student: {source!r} is neither a folder nor the address of a student artifact")
    return folder
