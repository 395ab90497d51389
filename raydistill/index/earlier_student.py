"""The student of the round before in mining: it encodes conversations, and rewrites beside the document encoder."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydistill.conversations.text import History, student_text
from raydistill.encoders.batch import SparseBatch
from raydistill.storage.artifacts import Artifact
from raydistill.storage.folders import fetch_folder


class EarlierStudent:
    """A student that encodes in the text form it was trained with.

    Args:
        student: artifact of kind "student".
        device: torch device.
    """

    def __init__(self, student: Artifact, trust_remote_code: bool, device: str) -> None:
        from raydistill.encoders.checkpoint import load_student

        with tempfile.TemporaryDirectory(prefix="raydistill-student-") as folder:
            loaded = load_student(fetch_folder(student, Path(folder)), trust_remote_code)
        self._encoder = loaded.encoder(device=device)
        self._text = loaded.text
        self._separator = loaded.tokenizer.sep_token or ""

    def of_conversations(self, queries: pa.Table) -> SparseBatch:
        """Return the vectors of queries of schema QUERIES (see `candidates`)."""
        histories = [[(turn["question"], turn["answer"]) for turn in turns] for turns in queries["history"].to_pylist()]
        return self._vectors(queries["question"].to_pylist(), histories)

    def of_texts(self, texts: Sequence[str]) -> SparseBatch:
        """Return the vectors of texts that stand alone, such as rewrites: conversations of one turn."""
        return self._vectors(texts, [[]] * len(texts))

    def _vectors(self, questions: Sequence[str], histories: Sequence[History]) -> SparseBatch:
        return self._encoder.encode_queries(
            [
                student_text(question, history, self._text, self._separator)
                for question, history in zip(questions, histories, strict=True)
            ]
        )


def spread_ratio(reference: NDArray[Any] | None, scores: NDArray[Any]) -> np.float32:
    """Return what scores are to be multiplied by so that their standard deviation is that of the reference; 1 where there is
    no reference, or either is the same for every passage."""
    if reference is None:
        return np.float32(1.0)
    wanted, own = (float(np.std(each.astype(np.float64))) for each in (reference, scores))
    return np.float32(wanted / own) if wanted > 0 and own > 0 else np.float32(1.0)
