"""The document encoder's loop: what a step computes does not depend on chunks or workers, and a resumed run goes on exactly.

DeepSpeed and process groups keep global state, so every run has processes of its own (see `processes`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raydistill.config import LearnedDocumentsConfig
from raydistill.distill.document_loop import chunks_by_length, own_chunks
from raydistill.distill.document_stream import DocumentStream
from raydistill.distill.engine import Workplace
from raydistill.index.corpus import passage_parts
from raydistill.index.passage_texts import PassageTexts
from raydistill.storage.artifacts import Artifact
from tests.distill import processes
from tests.distill.document_world import learned, lexical_encoder, put_corpus, put_examples

STEPS = 6


@pytest.fixture
def world(tmp_path: Path) -> dict[str, Any]:
    root = str(tmp_path / "root")
    return {"corpus": put_corpus(root, tmp_path).to_json(), "examples": put_examples(root).to_json()}


def run(
    folder: Path, spec: dict[str, Any], encoder: str, workers: int = 1, top_terms: int | None = None, **training: Any
) -> list[dict[str, float]]:
    """Train in `workers` processes and return the records of rank 0; checkpoints lie in `folder`."""
    folder.mkdir()
    settings = learned(encoder, steps=STEPS, workers={"actors": workers}, **training)
    documents = settings.model_copy(update={"top_terms": top_terms}).model_dump(mode="json")
    work = {**spec, "documents": documents, "encoder": encoder, "folder": str(folder)}
    processes.run(train, workers, work, folder)
    return list(json.loads((folder / "records.json").read_text()))


def gradient(folder: Path) -> torch.Tensor:
    """Return the clipped gradient of the first step, all parameters in one vector: AdamW's first moment, times ten."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted((folder / "checkpoint-1").glob("*.safetensors")):
        tensors |= {key: value for key, value in load_file(path).items() if key.startswith("exp_avg/")}
    return 10 * torch.cat([tensors[key].flatten() for key in sorted(tensors)])


def losses(records: list[dict[str, float]]) -> list[float]:
    return [record["loss"] for record in records]


def test_cached_gradients_are_those_of_the_whole_batch(tmp_path: Path, world: dict[str, Any], tiny_encoder: str) -> None:
    whole = run(tmp_path / "whole", world, tiny_encoder, chunk=20)
    chunked = run(tmp_path / "chunked", world, tiny_encoder, chunk=3)
    held = run(tmp_path / "held", world, tiny_encoder, chunk=3, cache_gradients=False)
    together = run(tmp_path / "together", world, tiny_encoder, workers=2, chunk=3, zero_stage=2)
    expected = gradient(tmp_path / "whole")
    assert expected.norm() > 0.01
    for name in ("chunked", "held", "together"):
        difference = gradient(tmp_path / name) - expected
        assert float(difference.norm() / expected.norm()) < 1e-5
    np.testing.assert_allclose(losses(chunked), losses(whole), rtol=1e-5)
    np.testing.assert_allclose(losses(held), losses(whole), rtol=1e-5)
    np.testing.assert_allclose(losses(together), losses(whole), rtol=1e-5)
    assert losses(whole)[-1] < losses(whole)[0]


def test_training_knows_how_many_terms_the_encoder_keeps(tmp_path: Path, world: dict[str, Any], tiny_encoder: str) -> None:
    whole = run(tmp_path / "whole", world, tiny_encoder, top_terms=9)
    chunked = run(tmp_path / "chunked", world, tiny_encoder, top_terms=9, chunk=3)
    free = run(tmp_path / "free", world, tiny_encoder)
    assert all(record["passage_l0"] > 9 and record["query_l0"] > 9 for record in free), "else nothing is tested"
    assert all(record["passage_l0"] <= 9 and record["query_l0"] <= 9 for record in whole)
    assert losses(chunked) == pytest.approx(losses(whole), rel=1e-4)
    assert abs(losses(whole)[0] - losses(free)[0]) > 1e-3


def test_a_resumed_run_repeats_an_unbroken_one_to_the_bit_and_at_another_world_size_nearly(
    tmp_path: Path, world: dict[str, Any], tiny_encoder: str
) -> None:
    training: dict[str, Any] = {"dropout": 0.1, "chunk": 5, "query_regularisation": {"target": "l0<=20"}}
    # A dense teacher that reads less than the encoder.
    training |= {"dense_teacher": {"model": tiny_encoder, "max_tokens": 12}, "lexical_weight": 0.01}
    training["objective"] = "kld(tau=0.1) + 0.2*kld(teacher=recorded) + 0.1*infonce"
    unbroken = run(tmp_path / "unbroken", world, tiny_encoder, **training)
    resume = {"resume": str(tmp_path / "unbroken" / "checkpoint-3")}
    # With processes that make batches ready, as on a GPU.
    resumed = run(tmp_path / "resumed", {**world, **resume}, tiny_encoder, readers=2, **training)
    assert [record["step"] for record in resumed] == [4, 5, 6]
    np.testing.assert_array_equal(losses(resumed), losses(unbroken[3:]))
    wider = run(tmp_path / "wider", {**world, **resume}, tiny_encoder, workers=2, zero_stage=3, **training)
    np.testing.assert_allclose(losses(wider), losses(unbroken[3:]), rtol=1e-4)


def test_every_text_is_in_one_chunk_of_one_worker() -> None:
    lengths = [5, 9, 1, 9, 3, 7, 2]
    chunks = chunks_by_length(lengths, 3)
    assert chunks == [[1, 3, 5], [0, 4, 6], [2]]
    for workers in (1, 2, 3, 4):
        places = [Workplace(rank, workers, torch.device("cpu")) for rank in range(workers)]
        dealt = [own_chunks(chunks, place) for place in places]
        assert len({len(own) for own in dealt}) == 1
        assert sorted(row for own in dealt for _, rows in own for row in rows) == list(range(7))


def train(rank: int, workers: int, spec: dict[str, Any]) -> None:
    """What every worker runs."""
    from transformers import AutoTokenizer

    from raydistill.distill.document_loop import DocumentTrainer

    documents = LearnedDocumentsConfig.model_validate(spec["documents"])
    corpus = Artifact.from_json(spec["corpus"])
    texts = PassageTexts(corpus, passage_parts(corpus.manifest()))
    examples = Artifact.from_json(spec["examples"])
    stream = DocumentStream(examples, documents.training, texts, lexical_encoder(spec["encoder"]))
    place = Workplace(rank, workers, torch.device("cpu"))
    trainer = DocumentTrainer(documents, stream, AutoTokenizer.from_pretrained(spec["encoder"]), place, "f" * 64)
    folder = Path(spec["folder"])
    if "resume" in spec:
        trainer.restore(Path(spec["resume"]))
    records: list[dict[str, float]] = []
    trainer.run(records.append, lambda current: current.save(folder / f"checkpoint-{current.step}"))
    if rank == 0:
        (folder / "records.json").write_text(json.dumps(records))
