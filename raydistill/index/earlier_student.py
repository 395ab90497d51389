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


def scale_to_teachers(scores: NDArray[Any], own: NDArray[Any], others: Sequence[NDArray[Any]]) -> np.float32 | None:
    """Return what an earlier student's scores of a rewrite are to be multiplied by to stand beside the teachers'.

    Students learn at a temperature of their own, so their scores need not spread as those do that they learn from.
    Multiplied, their standard deviation over the candidates is that of the document encoder's scores of the same rewrite;
    where those are all the same, the mean one of the query's other rewrites. Only the spread is matched: shifted scores
    would be of no vector any more.

    Args:
        scores: [C], the student's.
        own: [C], the document encoder's of the same rewrite.
        others: [C] each, the document encoder's of the query's other rewrites.

    Returns:
        The factor, > 0. None where the student scores all candidates alike (it says nothing of them), and where nobody's
        scores have a spread.
    """
    spread = _spread(scores)
    wanted = [_spread(own)]
    if not wanted[0]:
        wanted = [each for each in map(_spread, others) if each] or [0.0]
    return np.float32(np.mean(wanted) / spread) if spread and np.mean(wanted) else None


def _spread(scores: NDArray[Any]) -> float:
    return float(np.std(scores.astype(np.float64))) if len(scores) else 0.0
