"""The DeepSpeed loop: what training computes does not depend on how it is spread, stopped or continued."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raydistill.conversations.records import Conversation, ConversationSet, Turn
from raydistill.distill.engine import learning_rate_share
from raydistill.index.publish import IndexVersion
from raydistill.storage.artifacts import Artifact
from tests.distill import loop_work, processes
from tests.distill.conftest import WORDS, build_index, put_candidates

Mined = tuple[Artifact, IndexVersion]
STEPS = 20
LOSSES = ("loss", "kld", "infonce", "flops_penalty", "l1_penalty", "l0", "gradient_norm")
# The softmax over keys does not change when all keys move alike: the gradient of a key's bias is 0 but for rounding, and
# Adam makes full steps of rounding. Nothing that the model computes depends on it.
WITHOUT_GRADIENT = "attention.self.key.bias"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Mined:
    """Candidates and index, made once for the module: nothing here writes to them."""
    root = str(tmp_path_factory.mktemp("loop") / "root")
    os.makedirs(root)
    return put_candidates(root), build_index(root)


def settings(world: Mined, encoder: str, folder: Path, steps: int = STEPS, **train: Any) -> dict[str, Any]:
    candidates, index = world
    folder.mkdir()
    return {
        "candidates": candidates.to_json(),
        "index": index.to_json(),
        "encoder": encoder,
        "folder": str(folder),
        "train": {
            "epochs": steps * 8 / 22 - 0.01,
            "global_batch": 8,
            "micro_batch": 8,
            "zero_stage": 0,
            "learning_rate": 1e-3,
            "dropout": 0.0,
            "sampling": {"passages": 6, "top": 1, "policy": "window(first=2, last=30)"},
            "objective": "0.7*kld(student_tau=2) + 0.3*infonce",
            "regularisation": {"terms": "0.01*flops + 0.001*l1"},
            "checkpoint_steps": 1000,
            **train,
        },
    }


def trained(world: Mined, encoder: str, folder: Path, workers: int, micro_batch: int, zero_stage: int, **more: Any) -> Path:
    """Train in `workers` processes and return the folder with what came out."""
    extra = {name: more.pop(name) for name in ("resume", "turns", "preempt_after_step") if name in more}
    layout = {"workers": {"actors": workers}, "micro_batch": micro_batch, "zero_stage": zero_stage}
    spec = settings(world, encoder, folder, **layout, **more)
    processes.run(loop_work.train, workers, spec | extra, folder)
    return folder


def table(folder: Path, fields: tuple[str, ...] = LOSSES) -> NDArray[np.float64]:
    return np.asarray([[record[field] for field in fields] for record in loop_work.answer(folder)["records"]])


def assert_same_parameters(found: Path, wanted: Path, tolerance: float) -> None:
    """Every tensor within a relative tolerance, by its norm; at tolerance 0 equal to the bit."""
    theirs, ours = loop_work.parameters(wanted / "parameters"), loop_work.parameters(found / "parameters")
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        if tolerance == 0.0:
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
        elif not name.endswith(WITHOUT_GRADIENT):
            assert np.linalg.norm(ours[name] - value) <= tolerance * np.linalg.norm(value), name


@pytest.fixture(scope="module")
def alone(world: Mined, tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference: one worker, one micro-batch, no ZeRO, 20 steps."""
    return trained(world, tiny_encoder, tmp_path_factory.mktemp("alone") / "run", 1, 8, 0)


# A covering set of workers {1, 2, 4} x accumulation {no, yes} x ZeRO {0, 1, 2, 3}: every pair of workers and accumulation
# (one worker without it is the reference), every stage on several workers with and without accumulation.
@pytest.mark.parametrize(
    ("workers", "micro_batch", "zero_stage"),
    [(1, 2, 1), (2, 4, 0), (2, 2, 0), (2, 4, 2), (2, 2, 2), (2, 2, 3), (4, 2, 1), (4, 1, 1), (4, 2, 3)],
)
def test_twenty_steps_are_the_same_however_they_are_spread(
    world: Mined, tiny_encoder: str, tmp_path: Path, alone: Path, workers: int, micro_batch: int, zero_stage: int
) -> None:
    spread = trained(world, tiny_encoder, tmp_path / "run", workers, micro_batch, zero_stage)
    assert len(table(spread)) == STEPS
    np.testing.assert_allclose(table(spread), table(alone), rtol=1e-5)
    assert_same_parameters(spread, alone, 1e-5)


def test_processes_that_make_batches_ready_change_nothing(
    world: Mined, tiny_encoder: str, tmp_path: Path, alone: Path
) -> None:
    read_ahead = trained(world, tiny_encoder, tmp_path / "run", 1, 8, 0, readers=2)
    np.testing.assert_array_equal(table(read_ahead), table(alone))
    assert_same_parameters(read_ahead, alone, 0.0)


TARGET = {"terms": "flops + 0.001*l1", "target": "l0<=40", "per_depth": True}


@pytest.fixture(scope="module")
def held(world: Mined, tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference with a target: its lambdas follow what the whole batch costs at each depth."""
    return trained(world, tiny_encoder, tmp_path_factory.mktemp("held") / "run", 1, 8, 0, regularisation=TARGET)


@pytest.mark.slow  # every combination, a lambda a depth included; the covering set above is the quick form
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("workers", "micro_batch"), [(1, 8), (1, 2), (2, 4), (2, 2), (4, 2), (4, 1)])
def test_a_target_moves_lambda_alike_however_twenty_steps_are_spread(
    world: Mined, tiny_encoder: str, tmp_path: Path, held: Path, workers: int, micro_batch: int, zero_stage: int
) -> None:
    spread = trained(world, tiny_encoder, tmp_path / "run", workers, micro_batch, zero_stage, regularisation=TARGET)
    fields = (*LOSSES, "sparsity_statistic", *(f"lambda_depth_{depth}" for depth in (1, 2, 3, 4)))
    assert table(held, fields)[-1, -4:].max() > 0
    np.testing.assert_allclose(table(spread, fields), table(held, fields), rtol=1e-5)
    assert_same_parameters(spread, held, 1e-5)


def test_training_learns_and_the_penalties_take_part(alone: Path) -> None:
    found = table(alone, ("loss", "flops_penalty"))
    assert found[-5:, 0].mean() < found[:5, 0].mean()
    assert (found[:, 1] > 0).all()


def test_workers_that_do_not_divide_the_batch_change_nothing(
    world: Mined, tiny_encoder: str, tmp_path: Path, alone: Path
) -> None:
    # Three of four workers, as when a node was lost: four micro-batches of 2, so that one worker has none.
    spec = settings(world, tiny_encoder, tmp_path / "run", micro_batch=2, zero_stage=1, workers={"actors": 4})
    processes.run(loop_work.train, 3, spec, tmp_path / "run")
    spread = tmp_path / "run"
    np.testing.assert_allclose(table(spread), table(alone), rtol=1e-5)


def test_dropout_does_not_depend_on_the_number_of_workers(world: Mined, tiny_encoder: str, tmp_path: Path) -> None:
    one = trained(world, tiny_encoder, tmp_path / "one", 1, 2, 1, steps=6, dropout=0.2)
    two = trained(world, tiny_encoder, tmp_path / "two", 2, 2, 1, steps=6, dropout=0.2)
    np.testing.assert_allclose(table(two), table(one), rtol=1e-5)


def test_bf16_learns_and_starts_like_fp32(world: Mined, tiny_encoder: str, tmp_path: Path, alone: Path) -> None:
    half = trained(world, tiny_encoder, tmp_path / "half", 1, 8, 1, precision="bf16")
    assert table(half, ("loss",))[-5:].mean() < table(half, ("loss",))[:5].mean()
    np.testing.assert_allclose(table(half, ("loss",))[0], table(alone, ("loss",))[0], rtol=0.02)


def killed(world: Mined, encoder: str, folder: Path, workers: int, step: int, **train: Any) -> Path:
    """Train until a worker dies by SIGKILL after `step`, end the others, and return the newest checkpoint."""
    spec = settings(world, encoder, folder, workers={"actors": workers}, checkpoint_steps=1, **train)
    started = processes.start(loop_work.train, workers, spec | {"kill_after_step": step}, folder)
    started[-1].join(240)
    assert started[-1].exitcode == -signal.SIGKILL
    for process in started:
        process.kill()
        process.join()
    return folder / f"checkpoint-{step - 1}"


def test_a_killed_training_continues_to_the_bit_in_the_same_layout(world: Mined, tiny_encoder: str, tmp_path: Path) -> None:
    # With all that has a state of its own: dropout, a lambda for each turn depth that follows a target, a penalty's ramp.
    regularisation = {"terms": "flops + 0.001*l1", "target": "l0<=40", "per_depth": True}
    layout = {"micro_batch": 2, "zero_stage": 1, "dropout": 0.1, "steps": 12, "regularisation": regularisation}
    unbroken = trained(world, tiny_encoder, tmp_path / "unbroken", 2, **layout)
    step = random.randint(2, 11)
    checkpoint = killed(world, tiny_encoder, tmp_path / "killed", 2, step, **layout)
    resumed = trained(world, tiny_encoder, tmp_path / "resumed", 2, resume=str(checkpoint), **layout)
    steps = [record["step"] for record in loop_work.answer(resumed)["records"]]
    assert steps == list(range(step, 13)), f"killed after step {step}"
    fields = (*LOSSES, "flops_lambda", "sparsity_statistic")
    np.testing.assert_array_equal(table(resumed, fields), table(unbroken, fields)[step - 1 :])
    assert_same_parameters(resumed, unbroken, 0.0)


@pytest.mark.parametrize(
    ("workers", "micro_batch", "zero_stage"), [(1, 8, 0), (4, 1, 2), (2, 4, 3)], ids=["2->1", "2->4", "1->3"]
)
def test_a_killed_training_continues_in_another_layout(
    world: Mined, tiny_encoder: str, tmp_path: Path, alone: Path, workers: int, micro_batch: int, zero_stage: int
) -> None:
    step = random.randint(2, STEPS - 1)
    checkpoint = killed(world, tiny_encoder, tmp_path / "killed", 2, step, micro_batch=4, zero_stage=1)
    resumed = trained(world, tiny_encoder, tmp_path / "resumed", workers, micro_batch, zero_stage, resume=str(checkpoint))
    np.testing.assert_allclose(table(resumed), table(alone)[step - 1 :], rtol=1e-5)
    assert_same_parameters(resumed, alone, 1e-5)


def test_settings_of_a_validation_that_does_not_take_place_leave_checkpoints_good(
    world: Mined, tiny_encoder: str, tmp_path: Path
) -> None:
    first = trained(world, tiny_encoder, tmp_path / "first", 1, 8, 0, steps=2, checkpoint_steps=1)
    changed = {"validation": {"every_steps": 7}, "steps": 2, "resume": str(first / "checkpoint-1")}
    second = trained(world, tiny_encoder, tmp_path / "second", 1, 8, 0, **changed)
    np.testing.assert_array_equal(table(second), table(first)[1:])


def test_the_number_of_workers_may_grow_twice(world: Mined, tiny_encoder: str, tmp_path: Path, alone: Path) -> None:
    first = trained(world, tiny_encoder, tmp_path / "one", 1, 8, 3, checkpoint_steps=7)
    resume = str(first / "checkpoint-7")
    second = trained(world, tiny_encoder, tmp_path / "two", 2, 4, 0, checkpoint_steps=7, resume=resume)
    third = trained(world, tiny_encoder, tmp_path / "four", 4, 2, 1, resume=str(second / "checkpoint-14"))
    np.testing.assert_allclose(table(third), table(alone)[14:], rtol=1e-5)
    assert_same_parameters(third, alone, 1e-5)


def test_a_notice_of_preemption_to_one_worker_makes_all_write_a_checkpoint(
    world: Mined, tiny_encoder: str, tmp_path: Path
) -> None:
    layout = {"micro_batch": 4, "zero_stage": 1, "steps": 6}
    warned = trained(world, tiny_encoder, tmp_path / "warned", 2, preempt_after_step=3, **layout)
    assert {path.name for path in warned.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}
    assert len(loop_work.answer(warned)["records"]) == 6, "training goes on until the machine is gone"
    resumed = trained(world, tiny_encoder, tmp_path / "resumed", 2, resume=str(warned / "checkpoint-3"), **layout)
    np.testing.assert_array_equal(table(resumed), table(warned)[3:])


def held_out() -> ConversationSet:
    """Three conversations of two turns with judgements, one turn without."""
    words = np.random.default_rng(5)
    conversations, qrels = [], {}
    for number in range(3):
        turns = tuple(Turn(f"v{number}<::>{depth}", depth, " ".join(words.choice(WORDS, 5)), "a b c") for depth in (1, 2))
        conversations.append(Conversation(f"v{number}", turns))
        qrels |= {turn.query_id: {f"p{words.integers(60)}": 1 for _ in range(3)} for turn in turns}
    del qrels["v2<::>2"]
    return ConversationSet(tuple(conversations), qrels, "held-out")


def test_validation_is_the_same_for_any_workers_and_keeps_the_best_step(
    world: Mined, tiny_encoder: str, tmp_path: Path
) -> None:
    validation = {"every_steps": 3, "measure": "nDCG@10", "measures": ["R@20"], "depth": 20}
    more = {"validation": validation, "turns": held_out(), "steps": 8}
    one = trained(world, tiny_encoder, tmp_path / "one", 1, 8, 0, **more)
    two = trained(world, tiny_encoder, tmp_path / "two", 2, 2, 3, **more)
    records = loop_work.answer(one)["validations"]
    assert [record["step"] for record in records] == [3, 6, 8]
    expected = {"step", "nDCG@10", "R@20", "l0", "flops", "l0_depth_1", "l0_depth_2", "flops_depth_1", "flops_depth_2"}
    assert set(records[0]) == expected
    for mine, theirs in zip(records, loop_work.answer(two)["validations"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    best = max(records, key=lambda record: (record["nDCG@10"], -record["step"]))
    assert loop_work.answer(one)["progress"]["best_step"] == best["step"]


def test_the_learning_rate_warms_up_and_follows_its_schedule() -> None:
    shares = [learning_rate_share(step, 100, 0.1) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == pytest.approx(1.0)
    assert shares[9:] == sorted(shares[9:], reverse=True)
    assert shares[55] == pytest.approx(0.5)
    assert shares[100] == 0.0
    cosine = [learning_rate_share(step, 100, 0.1, "cosine") for step in range(101)]
    assert cosine[:10] == shares[:10]
    assert cosine[55] == pytest.approx(0.5)
    assert cosine[30] > shares[30]
    assert cosine[100] == pytest.approx(0.0)
    assert {learning_rate_share(step, 100, 0.1, "constant") for step in range(10, 101)} == {1.0}
