"""The student of a service: found by folder or artifact address, loaded, and asked for the vectors of conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from raydistill.conversations.text import student_text
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.student_source import open_student, student_folder
from raydistill.errors import ConfigError
from raydistill.serving.requests import Asked
from raydistill.storage.students import student_artifact


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
        loaded = open_student(source, trust_remote_code)
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


def configured_vocabulary_size(source: str) -> int | None:
    """Return the number of terms that a student's config.json states, without loading the model; None where it states none.

    Raises as `StudentQueries`.
    """
    artifact = student_artifact(source)
    if artifact is None:
        path = Path(student_folder(source)) / "config.json"
        if not path.is_file():
            raise ConfigError(f"student: {source!r} holds no Hugging Face model (config.json is missing)")
    else:
        path = artifact.fetch(artifact.part("config.json"))
    size = json.loads(path.read_bytes()).get("vocab_size")
    return None if size is None else int(size)
