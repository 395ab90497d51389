"""Results in experiment trackers: every number arrives, nothing is doubled, and what is wrong is told in a sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from raydistill.cli import main
from raydistill.config import DistillConfig
from raydistill.evaluation.report import build_report
from raydistill.evaluation.summary import Metrics
from raydistill.tracking import trackers
from raydistill.tracking.results import read_results
from raydistill.tracking.trackers import _folder_name
from tests.conftest import free_port
from tests.event_files import scalars, wandb_content

TRAINING = [{"step": step, "loss": 3.0 / step, "advice": "a sentence"} for step in (10, 20)]
VALIDATION = [{"step": 20, "nDCG@10": 0.25, "l0": math.nan}]
STAGES = [{"stage": "train", "seconds": 40.0, "skipped": False}]


@pytest.fixture
def report(tmp_path: Path, make_config: Callable[..., DistillConfig], make_metrics: Callable[..., Metrics]) -> Path:
    """report.json of a run whose teacher has a name that no tracker takes as it is, with its page."""
    made = build_report(make_config(), make_metrics(teacher="a/b: c"), TRAINING, STAGES, VALIDATION)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "report.json").write_text(made.json)
    (folder / "report.html").write_text(made.html)
    return folder / "report.json"


def systems(report: Path) -> dict[str, Any]:
    return {system["name"]: system for system in json.loads(report.read_text())["evaluation"]["systems"]}


def test_everything_a_report_measured_is_read(report: Path) -> None:
    results = read_results(str(report))
    student = systems(report)["student"]
    assert results.name == "trial"
    assert set(results.systems) == set(systems(report))
    assert results.systems["student"]["nDCG@3"] == student["measures"]["nDCG@3"]["mean"]
    assert results.systems["student"]["L0"] == student["terms"]["mean"]
    assert results.systems["student"]["total_ms p99"] == student["total_ms"]["p99"]
    assert results.seconds == {"train": 40.0}
    points = results.by_depth["student"]["R@2"].points
    assert points == tuple((each["first"], each["measures"]["R@2"]["mean"]) for each in student["by_depth"])
    assert results.curves["train/loss"].points == ((10, 0.3), (20, 0.15))
    assert set(results.curves) == {"train/loss", "validation/nDCG@10", "validation/l0"}
    assert results.files["report.html"] == report.with_suffix(".html").read_bytes()
    assert results.settings["teachers"][0]["name"] == "mistral"


def test_tensorboard_gets_a_folder_a_system_and_a_repetition_adds_nothing(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["track", str(report), "--tensorboard", str(tmp_path / "boards")]
    assert main(command) == 0
    [board] = (tmp_path / "boards").iterdir()
    assert str(board) in capsys.readouterr().out
    student, found = systems(report)["student"], scalars(board / "student")
    assert found["all_turns/nDCG_at_3", 0] == pytest.approx(student["measures"]["nDCG@3"]["mean"])
    for each in student["by_depth"]:
        assert found["by_depth/L0", each["first"]] == pytest.approx(each["terms"]["mean"])
    assert scalars(board / "run")["train/loss", 20] == pytest.approx(0.15)
    assert (board / "a_b__c").is_dir()
    before = sorted(path for path in board.rglob("*"))
    assert main(command) == 0
    assert sorted(path for path in board.rglob("*")) == before
    assert [path.name for path in (tmp_path / "boards").iterdir()] == [board.name]


def test_mlflow_holds_numbers_settings_and_files_once(report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file://{tmp_path / 'mlruns'}"
    for _ in range(2):
        assert main(["track", str(report), "--mlflow", uri, "--experiment", "trials"]) == 0
    client = mlflow.MlflowClient(tracking_uri=uri)
    [run] = client.search_runs([client.get_experiment_by_name("trials").experiment_id])
    student = systems(report)["student"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.runName"] == "trial"
    assert run.data.params["teachers.0.name"] == "mistral"
    assert run.data.metrics["student/nDCG_at_3"] == student["measures"]["nDCG@3"]["mean"]
    assert run.data.metrics["a/b__c/L0"] == systems(report)["a/b: c"]["terms"]["mean"]
    assert "validation/l0" not in run.data.metrics, "it was no number"
    history = client.get_metric_history(run.info.run_id, "by_depth/student/R_at_2")
    assert [(each.step, each.value) for each in history] == [
        (each["first"], each["measures"]["R@2"]["mean"]) for each in student["by_depth"]
    ]
    assert [each.value for each in client.get_metric_history(run.info.run_id, "train/loss")] == [0.3, 0.15]
    stored = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (stored / "report.json").read_bytes() == report.read_bytes()
    assert (stored / "report.html").exists()


def test_wandb_takes_the_results_offline(report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    assert main(["track", str(report), "--wandb", "conversations"]) == 0
    [stored] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = wandb_content(stored)
    assert read_results(str(report)).identity.encode() in content
    for name in (b"student/nDCG@3", b"by_depth/student/R@2", b"train/loss", b"conversations", b"raydistill_complete"):
        assert name in content


def test_a_send_that_breaks_off_is_marked_failed_and_can_be_repeated(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file://{tmp_path / 'mlruns'}"

    def breaks_off(*_: object) -> None:
        raise ConnectionError("the artifact store went away")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_artifact", breaks_off)
        assert main(["track", str(report), "--mlflow", uri]) == 1
    assert "ConnectionError: the artifact store went away" in capsys.readouterr().err
    assert main(["track", str(report), "--mlflow", uri]) == 0
    client = mlflow.MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("raydistill").experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


def test_systems_whose_names_a_folder_cannot_tell_apart_have_folders_of_their_own() -> None:
    taken = {"run"}
    assert [_folder_name(name, taken) for name in ("a/b", "a b", "run", "a_b-2")] == ["a_b", "a_b-2", "run-2", "a_b-2-2"]


def test_a_comparison_is_sent_as_well(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q1 0 d1 1\nq2 0 d2 1\n")
    for name, first in (("one", "d1"), ("two", "d2")):
        lines = [f"{query} Q0 {first} 1 2.0 {name}\n" for query in ("q1", "q2")]
        (tmp_path / name).write_text("".join(lines))
    runs = [str(tmp_path / name) for name in ("one", "two")]
    assert main(["compare", *runs, "--qrels", str(tmp_path / "qrels"), "--measures", "RR", "--to", str(tmp_path)]) == 0
    results = read_results(str(tmp_path / "comparison.json"))
    assert set(results.systems) == {"one", "two"}
    assert results.systems["two"] == {"RR": 0.5, "RR p_holm": 1.0, "judged share": 0.5, "missing": 0.0}
    assert main(["track", str(tmp_path / "comparison.json"), "--tensorboard", str(tmp_path / "boards")]) == 0
    [board] = (tmp_path / "boards").iterdir()
    assert scalars(board / "one")["all_turns/RR", 0] == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "nowhere to send the results; give --mlflow URI"),
        (["--mlflow", "https://me:secret@example.org"], "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_wrong_options_are_told(report: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert main(["track", str(report), *options]) == 1
    errors = capsys.readouterr().err
    assert said in errors
    assert "secret" not in errors


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not json", "is no JSON"),
        ('{"a": 1}', "holds neither a report nor a comparison"),
        ('{"evaluation": {}}', "lacks what a report has (KeyError('systems'))"),
        ("[]", "holds neither a report nor a comparison"),
        (None, "cannot be opened"),
    ],
)
def test_a_file_that_is_no_report_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    path = tmp_path / "some.json"
    if content is not None:
        path.write_text(content)
    assert main(["track", str(path), "--tensorboard", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "package"), [("--mlflow", "mlflow"), ("--wandb", "wandb"), ("--tensorboard", "tensorboardX")]
)
def test_a_missing_package_is_named(
    report: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    package: str,
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == package else find_spec(name))
    assert main(["track", str(report), option, str(tmp_path / "x")]) == 1
    assert f"{option} needs the package {package}, which is not installed" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_told_without_its_password(
    report: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    settings = {"MLFLOW_TRACKING_PASSWORD": "hunter2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert main(["track", str(report), "--mlflow", f"http://127.0.0.1:{free_port()}"]) == 1
    errors = capsys.readouterr().err
    assert "did not take the results" in errors
    assert "then send them again" in errors
    assert "hunter2" not in errors
