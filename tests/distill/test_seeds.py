"""Several trainings that differ in their seed, and their mean as the student: each done once, the mean validated."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydistill.config import DistillConfig
from raydistill.distill.seeds import planned_student, student_records, train_student
from raydistill.distill.train import student_artifact, train, validation_records
from raydistill.encoders.checkpoint import Student, load_student
from raydistill.index.publish import IndexVersion
from raydistill.storage.artifacts import Artifact
from raydistill.storage.folders import fetch_folder
from tests.distill.test_train import config, held_out

Mined = tuple[Artifact, IndexVersion]


def averaged(mined: Mined, encoder: str, seeds: int, **fields: Any) -> DistillConfig:
    return config(mined, encoder, epochs=0.5, log_steps=1, averaged_seeds=seeds, **fields)


def test_one_seed_is_a_training_as_ever(mined: Mined, tiny_encoder: str) -> None:
    settings = averaged(mined, tiny_encoder, 1)
    assert planned_student(settings, *mined) == student_artifact(settings, *mined)
    assert planned_student(averaged(mined, tiny_encoder, 2), *mined) != student_artifact(settings, *mined)


def test_the_student_is_the_mean_of_its_seeds_and_what_is_trained_is_not_trained_again(
    ray_cluster: None, mined: Mined, tiny_encoder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"validation": {"every_steps": 2, "keep": "last"}, "regularisation": {"target": "l0<=2"}}
    settings = averaged(mined, tiny_encoder, 2, **fields)
    # Trained alone before, as a job that was stopped between the two leaves it.
    alone = averaged(mined, tiny_encoder, 1, **fields)
    with caplog.at_level(logging.WARNING, logger="raydistill"):
        first = train(alone, *mined, held_out())
        made = first.manifest()
        student = train_student(settings, *mined, held_out())
    assert student == planned_student(settings, *mined, held_out())
    assert first.manifest() == made
    second = student_artifact(averaged(mined, tiny_encoder, 1, seed=43, **fields), *mined, held_out())
    assert student.manifest().metadata["seeds"] == [first.fingerprint, second.fingerprint]

    models = [_loaded(each, tmp_path) for each in (first, second)]
    mean = _loaded(student, tmp_path)
    named = [dict(each.model.named_parameters()) for each in models]
    for name, value in mean.model.named_parameters():
        torch.testing.assert_close(value, (named[0][name] + named[1][name]) / 2, rtol=1e-5, atol=1e-7)
    assert not torch.equal(*(next(each.model.parameters()) for each in models))

    # What is told of it is its own: its cost here is that of its vectors, not the mean of the two costs.
    texts = ["w1 w2 w3", "w5 w6 w7 [SEP] w4 [SEP] w1 w2 w3"]
    terms = mean.encoder(device="cpu").encode_queries(texts).lengths().mean()
    steps, validations = student_records(settings, student)
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert [record["step"] for record in validations] == [2, 3]
    assert validations[-1]["l0"] == pytest.approx(terms)
    before = [validation_records(settings, each)[0]["l0"] for each in (first, second)]
    assert validations[0]["l0"] == pytest.approx(np.mean(before))
    assert f"| L0 | {terms:.4g} |" in (tmp_path / student.fingerprint / "README.md").read_text()
    # Of the target, which none holds: each training and the mean say so on the driver.
    last = validation_records(settings, first)[-1]["l0"]
    told = [record.getMessage() for record in caplog.records if "exceeds its target" in record.getMessage()]
    expected = [("train", last), ("train 2 of 2", validation_records(settings, second)[-1]["l0"]), ("mean of 2", terms)]
    assert len(told) == len(expected)
    for text, (title, cost) in zip(told, expected, strict=True):
        assert text.startswith(f"{title}: the student of step 3 exceeds its target: l0 is {cost:.4g} on")

    assert train_student(settings, *mined, held_out()) == student


def _loaded(student: Artifact, folder: Path) -> Student:
    return load_student(fetch_folder(student, folder / student.fingerprint))
