"""The training stage on Ray Train: a finished student in the run root, its records, and failures that say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydistill.config import DistillConfig
from raydistill.config_loading import build_config
from raydistill.distill.train import train, training_records
from raydistill.encoders.checkpoint import load_student
from raydistill.errors import ResourceError, TrainingError
from raydistill.index.publish import IndexVersion
from raydistill.storage.artifacts import Artifact
from raydistill.storage.folders import fetch_folder

Mined = tuple[Artifact, IndexVersion]


def config(mined: Mined, encoder: str, **train_fields: Any) -> DistillConfig:
    return build_config(
        {
            "run": "tiny",
            "root": mined[0].root,
            "data": {"corpus": ["/c"], "train": {"conversations": "/t"}, "test": {"conversations": "/t"}},
            "teachers": [{"engine": "recorded", "name": "a", "rewrites": "/r"}],
            "student": {"model": encoder, "text": {"max_tokens": 64}},
            "train": {
                "epochs": 1,
                "global_batch": 4,
                "micro_batch": 2,
                "learning_rate": 1e-3,
                "sampling": {"passages": 6, "top": 1, "first_rank": 2, "last_rank": 30},
                "log_steps": 1,
                "checkpoint_steps": 3,
                "max_failures": 0,
                **train_fields,
            },
        }
    )


def test_two_workers_train_a_student_that_loads_and_is_not_trained_again(
    ray_cluster: None, mined: Mined, tiny_encoder: str, tmp_path: Path
) -> None:
    settings = config(mined, tiny_encoder, workers={"actors": 2, "cpus": 1}, zero_stage=2)
    student = train(settings, *mined)
    assert [record["step"] for record in training_records(settings, student)] == [1, 2, 3, 4, 5, 6]
    folder = fetch_folder(student, tmp_path / "student")
    loaded = load_student(folder)
    vectors = loaded.encoder(device="cpu").encode_queries(["w1 w2 [SEP] w3", "w4"])
    assert vectors.nnz > 0
    from sentence_transformers import SparseEncoder

    theirs = SparseEncoder(str(folder), device="cpu").encode_query(["w1 w2 [SEP] w3", "w4"]).to_dense().numpy()
    np.testing.assert_allclose(vectors.to_dense(), theirs, atol=1e-5)
    manifest = student.manifest()
    assert train(settings, *mined) == student
    assert student.manifest() == manifest


def test_a_diverging_run_ends_in_a_sentence_and_leaves_no_student(
    ray_cluster: None, mined: Mined, tiny_encoder: str
) -> None:
    settings = config(mined, tiny_encoder, learning_rate=1e30, gradient_clip=1e30)
    with pytest.raises(TrainingError, match=r"(the loss is|no query has a non-zero term) .*learning_rate"):
        train(settings, *mined)
    assert not list(Path(mined[0].root).glob("artifacts/student/*/_manifest.json"))


def test_workers_that_never_fit_are_refused_at_once(ray_cluster: None, mined: Mined, tiny_encoder: str) -> None:
    settings = config(mined, tiny_encoder, workers={"actors": 2, "cpus": 4})
    with pytest.raises(ResourceError, match=r"train\.workers asks for 2 actors, together 8 CPU"):
        train(settings, *mined)
