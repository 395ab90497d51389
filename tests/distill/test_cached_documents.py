"""Training reads document vectors from the index: the student's scores are those of documents encoded again in the loop.

The bound is the quantisation of impacts and nothing else. With q >= 0 the student's and w > 0 a document's weights:

    f32   equal to 1e-5 of the score (the order of float32 sums)
    f16   each weight to half a unit in the last of 11 bits: 2^-11 w, and 2^-25 below the normal range
    u8    each weight to half a step of the segment's scale (its largest impact / 255); a smaller one becomes a whole step
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from raydistill.config import SamplingConfig
from raydistill.config.objective import Objective
from raydistill.distill.step import StepTensors, all_scores, own_scores
from raydistill.distill.stream import CandidateStream
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.splade import SpladeEncoder, load_model
from raydistill.index.forward import ForwardVectors
from raydistill.index.publish import IndexVersion, IndexWriter
from raydistill.index.segment import Impacts, write_segment
from raydistill.storage.artifacts import fingerprint
from raydistill.teachers.combine import Combiner
from tests.distill.conftest import PASSAGES, WORDS, put_candidates

SEGMENTS = {"a": slice(0, 25), "b": slice(25, PASSAGES)}
FLOAT32 = 1e-5


def passage_texts() -> list[str]:
    random = np.random.default_rng(3)
    return [" ".join(random.choice(WORDS, random.integers(3, 20))) for _ in range(PASSAGES)]


def encoder_of(folder: str, batch_tokens: int) -> SpladeEncoder:
    model = load_model(folder, None, "mlm", False, "student")
    return SpladeEncoder(model, AutoTokenizer.from_pretrained(folder), 64, None, batch_tokens, "cpu")


def built_index(root: str, encoder: SpladeEncoder, impacts: Impacts) -> IndexVersion:
    writer = IndexWriter(root, f"cached-{impacts}", fingerprint("index", 1, {"impacts": impacts}, {}))
    for name, rows in SEGMENTS.items():
        vectors = encoder.encode_passages(passage_texts()[rows])
        path = Path(root) / f"{name}-{impacts}.seg"
        write_segment(path, vectors, [f"p{number}" for number in range(PASSAGES)[rows]], impacts)
        writer.put_segment(name, path, passages=len(vectors), postings=vectors.nnz)
    return writer.commit(list(SEGMENTS), encoder.vocabulary_size, {})


class Recording:
    """Passage vectors that remember which passages were asked for, in the order of the batch's documents."""

    def __init__(self, vectors: ForwardVectors) -> None:
        self.vocabulary_size = vectors.vocabulary_size
        self._vectors = vectors
        self.asked: list[NDArray[np.int64]] = []

    def vectors(self, passages: NDArray[np.int64]) -> SparseBatch:
        self.asked.append(passages)
        return self._vectors.vectors(passages)


def weight_errors(weights: NDArray[np.float64], impacts: Impacts) -> NDArray[np.float64]:
    """Return how far each stored weight may lie from the encoder's, [P, V]; 0 where the document has no such term."""
    if impacts == "f32":
        return np.zeros_like(weights)
    if impacts == "f16":
        return np.where(weights > 0, np.maximum(2.0**-11 * weights, 2.0**-25), 0.0)
    errors = np.zeros_like(weights)
    for rows in SEGMENTS.values():
        scale = weights[rows].max() / 255
        stored_as_one = weights[rows] < scale / 2
        errors[rows] = np.where(stored_as_one, scale - weights[rows], scale / 2)
    return np.where(weights > 0, errors, 0.0)


@pytest.mark.parametrize("impacts", ["f32", "f16", "u8"])
def test_scores_from_the_index_are_those_of_documents_encoded_again(
    impacts: Impacts, tiny_encoder: str, tmp_path: Path
) -> None:
    index = built_index(str(tmp_path), encoder_of(tiny_encoder, 4096), impacts)
    recorded = Recording(ForwardVectors(index))
    sampling = SamplingConfig.model_validate({"passages": 12, "policy": "uniform"})
    stream = CandidateStream(put_candidates(str(tmp_path)), recorded, sampling, Combiner("mean"), 6, 42, 4096)
    batch = next(stream.batches(0))
    student = encoder_of(tiny_encoder, 4096).encode_queries([query.question for query in batch.queries]).to_dense()
    tensors = StepTensors.of(batch, torch.device("cpu"), Objective.parse("kld + infonce"))
    own = own_scores(torch.from_numpy(student), tensors).numpy()
    everyone = all_scores(torch.from_numpy(student), tensors).numpy()

    # One text at a time, as a loop that encodes documents would see them in ever other company.
    encoded = encoder_of(tiny_encoder, 1).encode_passages(passage_texts()).to_dense().astype(np.float64)
    drawn = recorded.asked[0]
    queries = student.astype(np.float64)
    expected = queries @ encoded[drawn].T
    bound = queries @ weight_errors(encoded, impacts)[drawn].T + FLOAT32 * expected
    assert np.all(np.abs(everyone - expected) <= bound)
    of_place = np.take_along_axis(expected, batch.place, axis=1)
    bound_of_place = np.take_along_axis(bound, batch.place, axis=1)
    assert batch.present.sum() > 60
    assert np.all(np.abs(own - of_place)[batch.present] <= bound_of_place[batch.present])
    assert np.all(own[~batch.present] == 0.0)
    # The bounds are no formality: 16 and 8 bits are seen in the scores.
    if impacts != "f32":
        assert (np.abs(everyone - expected) / expected).max() > 3 * FLOAT32
