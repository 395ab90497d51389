"""Finished students at their addresses in run roots, ROOT/artifacts/student/NAME-ID, and as folders of this machine.

Trained document encoders, ROOT/artifacts/document-encoder/NAME-ID, are stored alike and found by the same functions.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from raydistill.errors import StorageError
from raydistill.storage.artifacts import Artifact, Manifest
from raydistill.storage.cache import default_cache
from raydistill.storage.folders import fetch_folder
from raydistill.storage.hashing import canonical_json, sha256_hex, unsealed
from raydistill.storage.store import open_store

_ARTIFACTS = "/artifacts/"


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
        raise StorageError(
            f"{source} is no complete student or document encoder (no _manifest.json there); give the address that a run "
            "printed"
        )
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
