"""The training stage on Ray Train: a finished student in the run root, its records, and failures that say why."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydistill.config import DistillConfig
from raydistill.config_loading import build_config
from raydistill.conversations.records import Conversation, ConversationSet, Turn
from raydistill.distill.train import student_artifact, train, training_records, validation_records
from raydistill.encoders.checkpoint import load_student
from raydistill.encoders.precision import emulates_bf16
from raydistill.errors import ConfigError, ResourceError, TrainingError
from raydistill.index.publish import IndexVersion
from raydistill.preflight import check_workers
from raydistill.storage.artifacts import Artifact
from raydistill.storage.folders import fetch_folder
from raydistill.storage.store import open_store

Mined = tuple[Artifact, IndexVersion]


def config(mined: Mined, encoder: str, **train_fields: Any) -> DistillConfig:
    return build_config(
        {
            "run": "tiny",
            "root": mined[0].root,
            "data": {
                "corpus": ["/c"],
                "train": {"conversations": "/t"},
                "validation": {"share": 0.2},
                "test": {"conversations": "/t"},
            },
            "teachers": [{"engine": "recorded", "name": name, "rewrites": "/r"} for name in ("a", "b")],
            "student": {"model": encoder, "text": {"max_tokens": 64}},
            "train": {
                "epochs": 1,
                "global_batch": 4,
                "micro_batch": 2,
                "learning_rate": 1e-3,
                "sampling": {"passages": 6, "top": 1, "policy": "window(first=2, last=30)"},
                "log_steps": 1,
                "checkpoint_steps": 3,
                "max_failures": 0,
                **train_fields,
            },
        }
    )


def test_two_workers_train_a_student_that_loads_is_not_trained_again_and_starts_the_next_one(
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

    short = config(mined, tiny_encoder, epochs=0.1, learning_rate=1e-12, weight_decay=0.0)
    second = fetch_folder(train(short, *mined, None, student), tmp_path / "second")
    assert "None were taken" in (second / "README.md").read_text()
    after = load_student(second).encoder(device="cpu").encode_queries(["w1 w2 [SEP] w3", "w4"])
    np.testing.assert_allclose(after.to_dense(), vectors.to_dense(), atol=1e-5)


def held_out() -> ConversationSet:
    turns = (Turn("v<::>1", 1, "w1 w2 w3", "w4"), Turn("v<::>2", 2, "w5 w6 w7", ""))
    return ConversationSet((Conversation("v", turns),), {"v<::>1": {"p3": 1}, "v<::>2": {"p9": 1, "p30": 2}}, "held-out")


def test_the_best_validation_becomes_the_student(ray_cluster: None, mined: Mined, tiny_encoder: str, tmp_path: Path) -> None:
    fields = {"validation": {"every_steps": 2, "measure": "RR", "patience": 2}, "loggers": {"tensorboard": True}}
    # A learning rate that ruins the student at once: the first validation is the best, and patience ends the training.
    settings = config(mined, tiny_encoder, epochs=4, learning_rate=0.01, readers=1, **fields)
    student = train(settings, *mined, held_out())
    validations = validation_records(settings, student)
    best = max(validations, key=lambda record: (record["RR"], -record["step"]))
    steps = [record["step"] for record in validations]
    assert steps == list(range(2, steps[-1] + 1, 2))
    assert steps[-1] == training_records(settings, student)[-1]["step"]
    assert steps[-1] == min(best["step"] + 4, 22)
    loaded = load_student(fetch_folder(student, tmp_path / "student")).encoder(device="cpu")
    lengths = loaded.encode_queries(["w1 w2 w3", "w5 w6 w7 [SEP] w4 [SEP] w1 w2 w3"]).lengths()
    assert lengths.mean() == pytest.approx(best["l0"])
    card = (tmp_path / "student" / "README.md").read_text()
    assert f"at step {best['step']:g}." in card
    assert f"| RR | {best['RR']:.4g} |" in card
    events = [info.key for info in open_store(settings.root).list("runs/tiny/training/")]
    assert any("/tensorboard/00000000/events." in key for key in events)
    assert student_artifact(settings, *mined) != student


def test_a_logger_that_is_not_installed_is_found_before_any_worker_starts(
    mined: Mined, tiny_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raydistill.tracking.training.find_spec", lambda name: None if name == "wandb" else name)
    with pytest.raises(ConfigError, match=r"train\.loggers\.wandb needs the package wandb"):
        train(config(mined, tiny_encoder, loggers={"wandb": "project"}), *mined)


@pytest.mark.slow  # the next one ends in a sentence from the same place
def test_a_diverging_run_ends_in_a_sentence_and_leaves_no_student(
    ray_cluster: None, mined: Mined, tiny_encoder: str
) -> None:
    settings = config(mined, tiny_encoder, learning_rate=1e30, gradient_clip=1e30)
    with pytest.raises(TrainingError, match=r"(the loss is|no query has a non-zero term) .*learning_rate"):
        train(settings, *mined)
    assert not list(Path(mined[0].root).glob("artifacts/student/*/_manifest.json"))


@pytest.mark.slow  # what a collapse is, and the advice, have tests of their own
def test_a_collapse_of_sparsity_is_said_on_the_driver_and_kept(
    ray_cluster: None, mined: Mined, tiny_encoder: str, caplog: pytest.LogCaptureFixture
) -> None:
    heavy = {"terms": "20*l1", "ramp_share": 0.2}
    settings = config(mined, tiny_encoder, epochs=6, learning_rate=3e-3, regularisation=heavy, log_steps=1000)
    with caplog.at_level(logging.WARNING, logger="raydistill"), pytest.raises(TrainingError, match="non-zero term left"):
        train(settings, *mined)
    records = training_records(settings, student_artifact(settings, *mined))
    assert records, "steps with advice are kept whatever log_steps is"
    assert "lower the weights in train.regularisation.terms" in records[0]["advice"]
    said = [record.getMessage() for record in caplog.records]
    assert [sentence for sentence in said if "collapses" in sentence] == [f"train: {records[0]['advice']}"]


@pytest.mark.slow
@pytest.mark.skipif(not emulates_bf16(), reason="this CPU has instructions for bfloat16")
def test_emulated_bfloat16_is_said_on_the_driver(
    ray_cluster: None, mined: Mined, tiny_encoder: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="raydistill"):
        train(config(mined, tiny_encoder, epochs=0.5, precision="bf16"), *mined)
    assert [r.getMessage() for r in caplog.records if "train.precision is bf16" in r.getMessage()]


@pytest.mark.slow
def test_an_elastic_training_runs_with_the_workers_that_the_cluster_holds(
    ray_cluster: None, mined: Mined, tiny_encoder: str
) -> None:
    # Three are asked for, and the cluster has two CPUs: 12 queries in micro-batches of 4 are shared out unevenly.
    elastic = {"workers": {"actors": 3, "cpus": 1}, "min_workers": 1, "global_batch": 12, "micro_batch": 4}
    settings = config(mined, tiny_encoder, **elastic)
    alone = config(mined, tiny_encoder, global_batch=12, micro_batch=4, epochs=1.0)
    check_workers(settings, {"train"})
    student = train(settings, *mined)
    assert student == student_artifact(alone, *mined), "the workers are no part of what is computed"
    assert [record["step"] for record in training_records(settings, student)] == [1, 2]


def test_workers_that_never_fit_are_refused_at_once(ray_cluster: None, mined: Mined, tiny_encoder: str) -> None:
    settings = config(mined, tiny_encoder, workers={"actors": 2, "cpus": 4})
    with pytest.raises(ResourceError, match=r"train\.workers asks for 2 actors, together 8 CPU"):
        train(settings, *mined)
