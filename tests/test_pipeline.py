"""Rounds of mining and training: each has artifacts of its own, goes on from the student before, is skipped when done."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from raydistill.cli import main
from raydistill.config import DistillConfig
from raydistill.config_loading import load_config
from raydistill.demo.run import CONFIG
from raydistill.model_source import resolve_model
from raydistill.pipeline import Chain
from raydistill.storage.artifacts import Artifact
from raydistill.storage.folders import fetch_folder
from tests.small_world import arguments, small_world


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a chain of two rounds with recorded rewrites and a validation split, on the small world."""
    data = small_world(tmp_path_factory.mktemp("world"))
    root = tmp_path_factory.mktemp("root")
    lines = [json.loads(line) for line in (data / "conversations.jsonl").read_text().splitlines()]
    turns = [(turn, line["turns"][0]["user"]) for line in lines for turn in line["turns"]]
    rewrites = [{"_id": turn["query_id"], "text": f"{turn['user']} {first}"} for turn, first in turns]
    (data / "rewrites.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rewrites))
    return arguments(
        data,
        str(root),
        f"teachers=[{{engine: recorded, name: simple, rewrites: {data / 'rewrites.jsonl'}}}]",
        "data.validation={share: 0.2}",
        "train.epochs=0.5",
        "train.global_batch=8",
        "train.micro_batch=8",
        "rounds=2",
        "score.student_encodes_rewrites=true",
    )


def configured(command: list[str]) -> DistillConfig:
    return load_config(CONFIG, command[2:])


def moved(student: Artifact, start: Path, folder: Path) -> float:
    """Return how far the embeddings of a student are from those of the model in a folder, as an L1 distance."""
    end = load_file(fetch_folder(student, folder) / "model.safetensors")
    begin = load_file(start / "model.safetensors")
    name = max(begin, key=lambda each: begin[each].size)
    return float(np.abs(end[name] - begin[name]).sum())


@pytest.mark.slow
def test_rounds_train_on_from_the_student_before_and_are_done_once(
    command: list[str], tmp_path: Path, ray_cluster: None
) -> None:
    assert main(["train", *command]) == 0
    chain = Chain(configured(command))
    records = chain.stage_records()
    assert [each["stage"] for each in records] == ["teach", "index", "score", "train", "score round 2", "train round 2"]
    assert not any(each["skipped"] for each in records)

    rewrites, index = chain.planned_rewrites()["train"], chain.index()
    rounds = chain.planned_rounds(rewrites, index)
    first, second = rounds
    assert all(each.find_manifest() is not None for each in (*first, *second))
    assert len({each.fingerprint for each in (*first, *second)}) == 4
    # The second round mines with the first student, and goes on from it: it ends farther from the base model.
    assert "gold_found.student" in second.candidates.manifest().metadata["counters"]
    assert "gold_found.student" not in first.candidates.manifest().metadata["counters"]
    assert first.candidates.manifest().metadata["teachers"] == ["simple"]
    assert second.candidates.manifest().metadata["teachers"] == ["simple", "simple@student"]
    base = Path(resolve_model(chain.config.student.model))
    distances = [moved(each.student, base, tmp_path / str(number)) for number, each in enumerate(rounds)]
    assert distances[1] > 1.2 * distances[0] > 0

    assert main(["train", *command]) == 0
    chain = Chain(configured(command))
    assert all(each["skipped"] for each in chain.stage_records())
    steps = [record["step"] for record in chain.training_curves()[0]]
    assert steps == sorted(set(steps)), "the curves of the second round go on where those of the first end"
    third = Chain(configured([*command, "rounds=3"])).planned_rounds(rewrites, index)
    assert third[:2] == rounds
    assert third[2].student.find_manifest() is None


def test_the_plan_names_rounds_sources_and_what_is_held_out(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", *command, "rounds=3", "train.averaged_seeds=2", "--dry-run"]) == 0
    plan = " ".join(capsys.readouterr().out.split())
    for words in (
        "validation 5 conversations",
        "train 19 conversations",
        "score round 2",
        "which encodes the rewrites too",
        "train round 3",
        "mean of 2 students, each of 0.5 epochs",
        "evaluate",
    ):
        assert words in plan


def test_a_learned_document_encoder_is_a_stage_before_the_index(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    learned = "index.documents={kind: learned, model: 'package:raydistill/demo/models/encoder'}"
    assert main(["distill", *command, learned, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    stages = [line.split()[1] for line in plan.splitlines() if "to run" in line or "│ done" in line]
    assert stages[:3] == ["teach", "documents", "index"]
    assert main(["documents", *command]) == 1
    assert "there is no document encoder to train; set it to learned" in " ".join(capsys.readouterr().err.split())


def test_the_address_of_the_learned_encoder_settles_what_follows(command: list[str]) -> None:
    def settled(*overrides: str) -> DistillConfig:
        learned = "index.documents={kind: learned, model: 'package:raydistill/demo/models/encoder'}"
        return Chain(configured([*command, learned, *overrides])).settled

    first = settled().index.documents.trained
    assert first is not None
    assert first == settled("train.epochs=9").index.documents.trained
    assert first != settled("index.documents.training.steps=7").index.documents.trained
    assert Chain(configured(command)).settled == configured(command)
