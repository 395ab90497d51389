"""The DeepSpeed loop: what a step computes does not depend on how it is split, and a resumed run repeats an unbroken one.

DeepSpeed and process groups keep global state, so every run is a set of processes of its own; this file is their script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydistill.config import ObjectiveConfig, SamplingConfig, StudentConfig, TextConfig, TrainConfig
from raydistill.distill.loop import learning_rate_share
from raydistill.distill.step import StepTensors, all_scores, own_scores, query_gradients, step_loss
from raydistill.distill.stream import CandidateStream
from raydistill.index.publish import IndexVersion
from raydistill.index.search import open_searcher
from raydistill.storage.artifacts import Artifact
from tests.conftest import free_port

Mined = tuple[Artifact, IndexVersion]
STEPS = 8


def settings(mined: Mined, encoder: str, **changes: Any) -> dict[str, Any]:
    candidates, index = mined
    train = {
        "epochs": STEPS * 4 / 22 - 0.01,
        "global_batch": 4,
        "micro_batch": 4,
        "learning_rate": 1e-3,
        "dropout": 0.0,
        "sampling": {"passages": 6, "top": 1, "first_rank": 2, "last_rank": 30},
        "objective": {"contrastive_weight": 0.3, "flops_weight": 0.01, "l1_weight": 0.001},
        "log_steps": 1,
        "checkpoint_steps": 3,
    }
    train |= changes
    return {"candidates": candidates.to_json(), "index": index.to_json(), "encoder": encoder, "train": train}


def run(tmp_path: Path, name: str, work: dict[str, Any], workers: int = 1, **extra: Any) -> list[dict[str, float]]:
    """Train in `workers` processes and return the records of rank 0."""
    folder = tmp_path / name
    folder.mkdir()
    port = str(free_port())
    spec = json.dumps({**work, **extra, "folder": str(folder)})
    processes = []
    for rank in range(workers):
        environment = {
            **os.environ,
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, __file__, spec], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
    answers = [process.communicate(timeout=240) for process in processes]
    for process, (_, errors) in zip(processes, answers, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return list(json.loads((folder / "records.json").read_text()))


def losses(records: list[dict[str, float]]) -> np.ndarray:
    return np.asarray([[record["loss"], record["flops"], record["l0"]] for record in records])


def test_a_step_is_the_same_however_it_is_split(tmp_path: Path, mined: Mined, tiny_encoder: str) -> None:
    whole = run(tmp_path, "whole", settings(mined, tiny_encoder))
    assert len(whole) == STEPS
    assert whole[-1]["loss"] < whole[0]["loss"]
    split = run(tmp_path, "split", settings(mined, tiny_encoder, micro_batch=1))
    pair = run(tmp_path, "pair", settings(mined, tiny_encoder, micro_batch=2, zero_stage=2), workers=2)
    np.testing.assert_allclose(losses(split), losses(whole), rtol=2e-4)
    np.testing.assert_allclose(losses(pair), losses(whole), rtol=2e-4)


def test_zero_stages_agree_and_bf16_learns(tmp_path: Path, mined: Mined, tiny_encoder: str) -> None:
    plain = run(tmp_path, "zero-0", settings(mined, tiny_encoder, zero_stage=0))
    sharded = run(tmp_path, "zero-3", settings(mined, tiny_encoder, zero_stage=3, micro_batch=2), workers=2)
    np.testing.assert_allclose(losses(sharded), losses(plain), rtol=2e-4)
    half = run(tmp_path, "bf16", settings(mined, tiny_encoder, precision="bf16"))
    assert half[-1]["loss"] < half[0]["loss"]
    np.testing.assert_allclose(losses(half)[0], losses(plain)[0], rtol=0.05)


def test_a_checkpoint_of_another_layout_is_refused_with_the_fix(tmp_path: Path, mined: Mined, tiny_encoder: str) -> None:
    run(tmp_path, "first", settings(mined, tiny_encoder))
    checkpoint = str(tmp_path / "first" / "checkpoint-3")
    with pytest.raises(AssertionError, match=r"written with train\.zero_stage=1 and cannot be continued with 2"):
        run(tmp_path, "second", settings(mined, tiny_encoder, zero_stage=2), resume=checkpoint)


def test_a_sharded_checkpoint_of_two_workers_resumes(tmp_path: Path, mined: Mined, tiny_encoder: str) -> None:
    work = settings(mined, tiny_encoder, zero_stage=3, micro_batch=2)
    unbroken = run(tmp_path, "unbroken", work, workers=2)
    resumed = run(tmp_path, "resumed", work, workers=2, resume=str(tmp_path / "unbroken" / "checkpoint-3"))
    np.testing.assert_allclose(losses(resumed), losses(unbroken[3:]), rtol=1e-5)


def test_a_resumed_run_repeats_an_unbroken_one_to_the_bit(tmp_path: Path, mined: Mined, tiny_encoder: str) -> None:
    work = settings(mined, tiny_encoder, dropout=0.1, micro_batch=2)
    unbroken = run(tmp_path, "unbroken", work)
    resumed = run(tmp_path, "resumed", work, resume=str(tmp_path / "unbroken" / "checkpoint-3"))
    assert [record["step"] for record in resumed] == list(range(4, STEPS + 1))
    np.testing.assert_array_equal(losses(resumed), losses(unbroken[3:]))


def batch_tensors(mined: Mined) -> StepTensors:
    candidates, index = mined
    policy = SamplingConfig(passages=6, top=1, first_rank=2, last_rank=30)
    stream = CandidateStream(candidates, open_searcher(index), policy, "mean", 5, 0, 100)
    return StepTensors.of(next(stream.batches(0)), torch.device("cpu"))


def dense_documents(step: StepTensors, vocabulary: int) -> torch.Tensor:
    dense = torch.zeros(len(step.asker), vocabulary)
    dense[step.document, step.term] = step.weight
    return dense


def test_scores_from_index_vectors_are_dense_dot_products(mined: Mined) -> None:
    step = batch_tensors(mined)
    queries = torch.rand(5, 95, generator=torch.Generator().manual_seed(0))
    everyone = queries @ dense_documents(step, 95).T
    torch.testing.assert_close(all_scores(queries, step), everyone)
    own = own_scores(queries, step)
    for row in range(5):
        for place in range(6):
            expected = everyone[row, step.place[row, place]] if step.present[row, place] else torch.tensor(0.0)
            torch.testing.assert_close(own[row, place], expected)


def test_the_gradient_of_a_step_matches_finite_differences(mined: Mined) -> None:
    step = batch_tensors(mined)
    step = StepTensors(**{**vars(step), "weight": step.weight.double(), "teacher": step.teacher.double()})
    objective = ObjectiveConfig(contrastive_weight=0.4, flops_weight=0.1, l1_weight=0.01, temperature=2.0)
    queries = torch.rand(5, 95, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    gradient, _ = query_gradients(queries, step, objective, 10, 10)
    direction = torch.rand(5, 95, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    epsilon = 1e-5
    ahead, _ = step_loss(queries + epsilon * direction, step, objective, 10, 10)
    behind, _ = step_loss(queries - epsilon * direction, step, objective, 10, 10)
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind).item() / (2 * epsilon), rel=1e-5)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    shares = [learning_rate_share(step, 100, 0.1) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == pytest.approx(1.0)
    assert shares[9] == pytest.approx(1.0)
    assert shares[9:] == sorted(shares[9:], reverse=True)
    assert shares[100] == 0.0


def train_in_this_process(spec: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    from raydistill.distill.loop import Hooks, Trainer, Workplace

    config = TrainConfig.model_validate(spec["train"])
    student = StudentConfig(model=spec["encoder"], text=TextConfig(max_tokens=64))
    stream = CandidateStream(
        Artifact.from_json(spec["candidates"]),
        open_searcher(IndexVersion.from_json(spec["index"])),
        config.sampling,
        config.objective.combine,
        config.global_batch,
        config.seed,
        config.shuffle_buffer,
    )
    place = Workplace(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), torch.device("cpu"))
    trainer = Trainer(student, config, stream, AutoTokenizer.from_pretrained(spec["encoder"]), place)
    folder = Path(spec["folder"])
    if "resume" in spec:
        trainer.restore(Path(spec["resume"]))
    records: list[dict[str, float]] = []
    trainer.run(Hooks(log=records.append, checkpoint=lambda step, current: current.save(folder / f"checkpoint-{step}")))
    if place.rank == 0:
        (folder / "records.json").write_text(json.dumps(records))


if __name__ == "__main__":
    train_in_this_process(json.loads(sys.argv[1]))
