"""Validation: measures over all judged turns, costs by depth, the best step, when to stop; loggers that may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from raydistill.config import LoggersConfig, MlflowConfig, ValidationConfig
from raydistill.config.regularisation import SparsityTarget
from raydistill.config_loading import validated
from raydistill.conversations.records import Conversation, ConversationSet, Turn
from raydistill.distill.validation import Progress, Validator
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import ConfigError, TrainingError
from raydistill.index.forward import document_share
from raydistill.index.publish import IndexVersion
from raydistill.index.search import open_searcher
from raydistill.storage.artifacts import Artifact
from raydistill.tracking import training as loggers
from raydistill.tracking.training import Remote, check_loggers, log_record, open_loggers
from tests.conftest import free_port
from tests.distill.conftest import TERMS
from tests.event_files import scalars, wandb_content

Mined = tuple[Artifact, IndexVersion]


def conversations(*qrels: dict[str, int]) -> ConversationSet:
    turns = tuple(Turn(f"q{number}", number, "w1 w2", "w3") for number in range(1, len(qrels) + 1))
    judged = {turn.query_id: grades for turn, grades in zip(turns, qrels, strict=True) if grades}
    return ConversationSet((Conversation("c", turns),), judged, "f")


def test_turns_are_searched_in_the_index_and_missing_ones_count_nothing(mined: Mined) -> None:
    index = mined[1]
    searcher, share = open_searcher(index), document_share(index)
    found = conversations({"p7": 1}, {"p8": 1}, {}, {"p9": 1})
    validator = Validator(ValidationConfig(measure="R@1", measures=("RR",), depth=5), found, searcher, share)
    assert [turn.query_id for turn in validator.turns] == ["q1", "q2", "q4"]
    # A passage's own vector finds it first; an empty vector finds nothing.
    own = searcher.vectors(np.asarray([7, 8]))
    empty = SparseBatch.from_rows([{}], len(TERMS))
    values = validator.values(validator.search(SparseBatch.concatenate([own, empty])))
    assert values["R@1"] == pytest.approx(2 / 3)
    assert values["RR"] == pytest.approx(2 / 3)
    assert values["l0"] == pytest.approx(8 / 3)
    assert [values[f"l0_depth_{depth}"] for depth in (1, 2, 4)] == [4.0, 4.0, 0.0]
    expected = [share[own.row(row)[0]].sum() for row in range(2)]
    assert values["flops_depth_2"] == pytest.approx(expected[1])
    assert values["flops"] == pytest.approx(sum(expected) / 3)


def test_without_a_judged_turn_there_is_nothing_to_validate_on(mined: Mined) -> None:
    with pytest.raises(TrainingError, match=r"no validation turn has a judgement.*data\.validation"):
        Validator(ValidationConfig(), conversations({}), open_searcher(mined[1]), document_share(mined[1]))


def test_the_best_step_is_the_first_of_the_highest_and_patience_counts_from_it() -> None:
    progress = Progress()
    news = [progress.add(step, value) for step, value in ((10, 0.2), (20, 0.4), (30, 0.4), (40, 0.3))]
    assert news == [True, True, False, False]
    assert (progress.best_step, progress.best_value) == (20, 0.4)
    assert [progress.is_over(patience) for patience in (None, 3, 2)] == [False, False, True]
    again = Progress.of(progress.state())
    assert again == progress
    assert again.add(50, 0.5)
    assert not again.is_over(2)
    assert Progress.of(Progress().state()) == Progress()


def test_the_best_step_holds_the_target_and_patience_waits_until_one_does() -> None:
    progress = Progress()
    # (measure, by what share the target is exceeded): sparser at every validation, and worse.
    found = [(0.50, 0.9), (0.45, 0.3), (0.44, 0.3), (0.40, 0.0), (0.42, 0.0), (0.60, 0.1), (0.41, 0.0)]
    news = [progress.add(10 * number, value, excess) for number, (value, excess) in enumerate(found)]
    assert news == [True, True, False, True, True, False, False]
    assert (progress.best_step, progress.best_value, progress.best_excess) == (40, 0.42, 0.0)
    assert progress.is_over(2)
    assert Progress.of(progress.state()) == progress
    never = Progress()
    assert [never.add(step, 0.1, excess) for step, excess in ((1, 0.5), (2, 0.5), (3, 0.4), (4, 0.6))] == [
        True,
        False,
        True,
        False,
    ]
    assert not never.is_over(1)


def test_a_target_is_held_within_its_tolerance() -> None:
    target = SparsityTarget("flops", 4.0)
    assert [target.excess(cost) for cost in (1.0, 4.0, 4.19)] == [0.0, 0.0, 0.0]
    assert target.excess(5.0) == pytest.approx(0.25)


def test_tensorboard_receives_every_number_of_a_record(tmp_path: Path) -> None:
    opened = open_loggers(LoggersConfig(tensorboard=True), "run", "f" * 16, {}, tmp_path)
    log_record(opened, {"step": 3, "loss": 0.5, "epoch": 1, "advice": "a sentence"}, "train")
    for each in opened:
        each.close()
    assert scalars(tmp_path) == {("train/loss", 3): 0.5, ("train/epoch", 3): 1.0}


def test_a_logger_that_is_not_installed_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name in ("wandb", "mlflow") else find_spec(name))
    check_loggers(LoggersConfig(tensorboard=True))
    with pytest.raises(ConfigError, match=r"train\.loggers\.wandb needs the package wandb.*pip install wandb"):
        check_loggers(LoggersConfig(wandb="project"))
    with pytest.raises(ConfigError, match=r"train\.loggers\.mlflow needs the package mlflow.*to null"):
        check_loggers(LoggersConfig(mlflow=MlflowConfig(uri="file:///x", experiment="e")))


def test_mlflow_receives_settings_and_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file://{tmp_path}"
    config = LoggersConfig(mlflow=MlflowConfig(uri=uri, experiment="e"))
    opened = open_loggers(config, "run", "f" * 16, {"epochs": 2.0}, tmp_path)
    log_record(opened, {"step": 3, "loss": 0.5}, "train")
    log_record(opened, {"step": 4, "nDCG@10": 0.25}, "validation")
    for each in opened:
        each.close()
    client = mlflow.MlflowClient(tracking_uri=uri)
    [run] = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params == {"epochs": "2.0"}
    assert run.data.metrics == {"train/loss": 0.5, "validation/nDCG_at_10": 0.25}
    assert [each.step for each in client.get_metric_history(run.info.run_id, "train/loss")] == [3]


def test_wandb_receives_every_number_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    opened = open_loggers(LoggersConfig(wandb="project"), "run", "f" * 16, {"epochs": 2.0}, tmp_path)
    log_record(opened, {"step": 3, "loss": 0.5}, "train")
    for each in opened:
        each.close()
    [stored] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert all(text in wandb_content(stored) for text in (b"train/loss", b"epochs", b"f" * 16))


@pytest.mark.parametrize("uri", ["https://me:secret@mlflow.example.org", "http://token@127.0.0.1:5000/x"])
def test_a_tracking_uri_with_a_secret_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as refusal:
        validated(LoggersConfig, {"mlflow": {"uri": uri, "experiment": "e"}}, Path("/"), "here")
    assert not any(secret in str(refusal.value) for secret in ("secret", "token@"))


class Outage:
    """A destination whose server went away after the first record."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.asked = 0

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.asked += 1
        if self.taken:
            raise ConnectionError("password hunter2 was refused")
        self.taken.append(step)

    def close(self) -> None:
        raise ConnectionError("gone")


def test_an_outage_of_a_logger_does_not_end_a_training() -> None:
    outage, said = Outage(), []
    remote = Remote("W&B", lambda: outage, said.append)
    for step in (10, 20, 30):
        log_record([remote], {"step": step, "loss": 1.0}, "train")
    remote.close()
    assert outage.taken == [10]
    assert outage.asked == 2  # it is left alone after the first failure
    assert [sentence.split(" (")[0] for sentence in said] == ["W&B took no record at step 20"]
    assert "hunter2" not in said[0]


def test_a_server_that_is_away_when_training_starts_or_goes_on_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    away = {"uri": f"http://127.0.0.1:{free_port()}", "experiment": "e"}
    opened = open_loggers(LoggersConfig.model_validate({"mlflow": away}), "run", "f" * 16, {}, tmp_path, said.append)
    log_record(opened, {"step": 1, "loss": 1.0}, "train")
    for each in opened:
        each.close()
    assert len(said) == 1
    assert said[0].startswith("MLflow could not be opened (")
    assert "the run root has all records" in said[0]
