"""The student of a service: found by folder or artifact address, loaded, and asked for the vectors of conversations."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from raydistill.conversations.text import student_text
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import ConfigError, StorageError
from raydistill.model_source import resolve_model
from raydistill.serving.requests import Asked
from raydistill.storage.artifacts import Artifact, Manifest
from raydistill.storage.folders import fetch_folder
from raydistill.storage.hashing import unsealed
from raydistill.storage.store import open_store

_ARTIFACTS = "/artifacts/"


class StudentQueries:
    """A student that encodes conversations in the text form it was trained with.

    Args:
        source: a folder, a model inside a package, a hub id, or the address of a student artifact.
        device: torch device.

    Raises:
        ConfigError: there is no student.
        StorageError: the artifact is missing or not complete.
    """

    def __init__(self, source: str, trust_remote_code: bool, device: str) -> None:
        from raydistill.encoders.checkpoint import load_student

        artifact = student_artifact(source)
        if artifact is None:
            loaded = load_student(_folder(source), trust_remote_code)
        else:
            with tempfile.TemporaryDirectory(prefix="raydistill-student-") as folder:
                loaded = load_student(fetch_folder(artifact, Path(folder)), trust_remote_code)
        self._encoder = loaded.encoder(device=device)
        self._text = loaded.text
        self._separator = loaded.tokenizer.sep_token or ""
        self.vocabulary = self._encoder.vocabulary()

    @property
    def vocabulary_size(self) -> int:
        """Number of terms."""
        return self._encoder.vocabulary_size

    def vectors(self, conversations: Sequence[Asked]) -> SparseBatch:
        """Return one query vector a conversation."""
        return self._encoder.encode_queries(
            [student_text(asked.question, asked.history, self._text, self._separator) for asked in conversations]
        )


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


def configured_vocabulary_size(source: str) -> int | None:
    """Return the number of terms that a student's config.json states, without loading the model; None where it states none.

    Raises as `StudentQueries`.
    """
    artifact = student_artifact(source)
    if artifact is None:
        path = Path(_folder(source)) / "config.json"
        if not path.is_file():
            raise ConfigError(f"student: {source!r} holds no Hugging Face model (config.json is missing)")
    else:
        path = artifact.fetch(artifact.part("config.json"))
    size = json.loads(path.read_bytes()).get("vocab_size")
    return None if size is None else int(size)


def _folder(source: str) -> str:
    folder = resolve_model(source, "student")
    if not Path(folder).is_dir():
        raise ConfigError(f"student: {source!r} is neither a folder nor the address of a student artifact")
    return folder
