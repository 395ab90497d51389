"""What users get wrong, through the command line: one sentence that names file, line or field and the fix, early."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from raydistill import pipeline
from raydistill.cli import main
from tests.small_world import arguments, small_world
from tests.teachers.endpoint import MODEL, said, serving

Run = Callable[..., str]


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the small world that a test may spoil."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in pristine.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must fail, and return its message."""

    def run(*overrides: str, command: str = "index", root: str | None = None) -> str:
        status = main([command, *arguments(data, root or str(tmp_path / "root"), *overrides)])
        message = capsys.readouterr().err
        assert status == 1
        assert "Traceback" not in message
        error = [line for line in message.splitlines() if line.startswith("error:")]
        assert len(error) == 1, message
        return error[0]

    return run


def spoil_line(path: Path, number: int, line: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_config_typo_names_the_field_and_the_right_one(refused: Run) -> None:
    assert "train.epoch: there is no such field; did you mean 'epochs'?" in refused("train.epoch=3")


def test_overrides_may_stand_on_both_sides_of_a_flag(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["index", *arguments(data, str(tmp_path / "root"), "train.epochs=3"), "--dry-run"]
    assert main([*command, "train.epoch=4"]) == 1
    assert "train.epoch: there is no such field" in capsys.readouterr().err
    assert main([*command, "index.name=other", "vars.run=second"]) == 0
    planned = capsys.readouterr().out
    assert "run second, root" in planned
    with pytest.raises(SystemExit):
        main([*command, "--dry-rum", "train.epochs=4"])
    assert "unrecognized arguments: --dry-rum train.epochs=4" in capsys.readouterr().err


def test_a_missing_configuration_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--config", "/nowhere/config.yaml"]) == 1
    assert "there is no configuration file /nowhere/config.yaml" in capsys.readouterr().err


def test_a_missing_corpus_is_named_before_ray_starts(refused: Run, data: Path) -> None:
    (data / "corpus.jsonl").unlink()
    assert str(data / "corpus.jsonl") in refused()


def test_a_missing_student_is_named_before_ray_starts(refused: Run) -> None:
    assert "student.model: the folder '/nowhere' does not exist" in refused("student.model=/nowhere")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["student.freeze.layers=99"], "student.freeze.layers is 99, but the model has"),
        (["student.lora.targets=[nosuch]"], "student.lora.targets is ('nosuch',), which fits no module of"),
        (["student.head=decoder"], "could not be loaded as AutoModelForCausalLM"),
        (
            ["index.documents={kind: splade, model: 'package:raydistill/demo/models/teacher-small'}"],
            "models/teacher-small' could not be loaded as AutoModelForMaskedLM",
        ),
    ],
)
def test_a_model_that_cannot_do_what_is_asked_is_refused_before_ray_starts(
    refused: Run, overrides: list[str], sentence: str
) -> None:
    assert sentence in refused(*overrides)


def test_a_sparsity_target_that_every_query_holds_is_refused(refused: Run) -> None:
    error = refused("train.regularisation={target: 'l0<=1000000'}")
    assert "train.regularisation.target is l0<=1000000, and the student's vocabulary has" in error


def test_an_objective_that_learns_from_gold_passages_needs_some(refused: Run) -> None:
    error = refused("data.train.qrels=", "train.objective=0.9*kld + 0.1*infonce")
    assert "train.objective has infonce, which learns from gold passages, and no training turn has one" in error


def test_a_calibration_that_learns_from_gold_passages_needs_some(refused: Run) -> None:
    scorer = "scorers=[{kind: cross-encoder, name: r, calibrate: true, encoder: {model: org/reader}}]"
    error = refused("data.train.qrels=", "train.objective=kld", scorer)
    assert "scorers.r.calibrate learns from gold passages, and no training turn has one" in error


def test_an_empty_conversation_is_named_by_file_and_line(refused: Run, data: Path) -> None:
    path = data / "conversations.jsonl"
    record = json.loads(path.read_text().splitlines()[2])
    spoil_line(path, 3, json.dumps({**record, "turns": []}))
    message = refused()
    assert "conversations.jsonl:3" in message
    assert "max_bad_rows" in message


def test_a_malformed_corpus_line_is_named_or_quarantined_by_a_stated_limit(
    refused: Run, data: Path, tmp_path: Path, ray_cluster: None
) -> None:
    spoil_line(data / "corpus.jsonl", 5, '{"_id": "p5", "text": ')
    message = refused()
    assert "corpus.jsonl:5" in message
    assert "data.max_bad_rows" in message
    assert main(["index", *arguments(data, str(tmp_path / "root"), "data.max_bad_rows=1")]) == 0


def test_an_unknown_passage_in_the_qrels_is_found_before_anything_is_encoded(
    refused: Run, data: Path, tmp_path: Path, ray_cluster: None
) -> None:
    path = data / "qrels.tsv"
    query, _, grade = path.read_text().splitlines()[1].split("\t")
    spoil_line(path, 2, f"{query}\tno-such-passage\t{grade}")
    message = refused()
    assert "no-such-passage" in message
    assert "qrels.tsv" in message
    assert not list((tmp_path / "root").glob("indexes/*/segments/*"))


def test_a_corpus_mistake_shows_before_the_teachers_are_asked(
    refused: Run, data: Path, tmp_path: Path, ray_cluster: None
) -> None:
    spoil_line(data / "corpus.jsonl", 5, "not JSON")
    assert "corpus.jsonl:5" in refused(command="distill")
    assert not list((tmp_path / "root").glob("artifacts/rewrites/*"))


def test_test_turns_without_any_judgement_are_refused_before_ray_starts(refused: Run, data: Path) -> None:
    header = (data / "qrels.tsv").read_text().splitlines()[0]
    (data / "empty.tsv").write_text(header + "\n")
    assert "no turn of data.test has a judgement" in refused(f"data.test.qrels={data / 'empty.tsv'}")


def test_an_id_of_two_turns_is_refused_where_rewrites_are_found_by_id(refused: Run, data: Path) -> None:
    lines = [json.loads(line) for line in (data / "conversations.jsonl").read_text().splitlines()]
    other = [{**line, "turns": [{**turn, "user": f"{turn['user']} really"} for turn in line["turns"]]} for line in lines]
    (data / "other.jsonl").write_text("".join(json.dumps(line) + "\n" for line in other))
    ids = [turn["query_id"] for line in lines for turn in line["turns"]]
    (data / "human.jsonl").write_text("".join(json.dumps({"_id": each, "text": "a full query"}) + "\n" for each in ids))
    message = refused(
        f"data.test.conversations={data / 'other.jsonl'}",
        "data.test.split=train",
        f"teachers=[{{engine: recorded, name: human, rewrites: {data / 'human.jsonl'}}}]",
    )
    assert "names one turn in data.train and another in data.test" in message


def test_malformed_recorded_rewrites_are_named_before_ray_starts(refused: Run, data: Path) -> None:
    (data / "human.jsonl").write_text('{"_id": "x", "text": "y"}\nnot JSON\n')
    message = refused(f"teachers=[{{engine: recorded, name: human, rewrites: {data / 'human.jsonl'}}}]")
    assert "human.jsonl:2" in message


@pytest.mark.slow  # tests/index/test_stages.py: a version with a lost segment is not taken for made
def test_a_lost_segment_is_built_again(data: Path, tmp_path: Path, ray_cluster: None) -> None:
    command = ["index", *arguments(data, str(tmp_path / "root"))]
    assert main(command) == 0
    segments = sorted((tmp_path / "root").glob("indexes/*/segments/*/*"))
    content = segments[0].read_bytes()
    segments[0].unlink()
    assert main(command) == 0
    assert segments[0].read_bytes() == content
    assert len(list((tmp_path / "root").glob("indexes/*/manifests/*"))) == 1


def test_a_finished_run_joins_a_cluster_where_new_judgements_are_to_be_looked_up(
    data: Path, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["index", *arguments(data, str(tmp_path / "root"))]
    assert main(command) == 0
    joined: list[object] = []
    monkeypatch.setattr(pipeline, "connect", joined.append)
    assert main(command) == 0
    assert joined == []
    qrels = (data / "qrels.tsv").read_text().splitlines()
    (data / "qrels.tsv").write_text("\n".join(qrels[:-1]) + "\n")
    assert main(command) == 0
    assert len(joined) == 1
    assert main(command) == 0
    assert len(joined) == 1


def test_a_missing_bucket_is_named_before_ray_starts(refused: Run, s3_endpoint: str) -> None:
    message = refused(root="s3://no-such-bucket-here/runs")
    assert "no-such-bucket-here" in message
    assert "create" in message


def test_asking_for_more_than_the_cluster_has_is_refused(refused: Run, ray_cluster: None) -> None:
    message = refused("index.workers.cpus=64")
    assert "index.workers asks for 1 actors, together 64 CPU, but the cluster has 2" in message


def test_an_endpoint_that_cannot_teach_is_named_before_ray_starts_and_in_the_dry_run(
    refused: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def teachers(url: str, **fields: str) -> str:
        settings = {"engine": "openai", "name": "far", "base_url": url, "model": MODEL, **fields}
        return f"teachers={json.dumps([settings])}"

    monkeypatch.delenv("FAR_KEY", raising=False)
    with serving(lambda prompt, before: said("x")) as endpoint:
        message = refused(teachers(endpoint.url, api_key_env="FAR_KEY"), command="distill")
        assert "teachers.far.api_key_env: the environment variable FAR_KEY is not set here" in message
        assert "has no model 'huge'; it has tiny" in refused(teachers(endpoint.url, model="huge"), command="distill")
        dry = ["distill", *arguments(data, str(tmp_path / "root"), teachers(endpoint.url)), "--dry-run"]
        assert main(dry) == 0
        assert "teach far" in capsys.readouterr().out
        assert not endpoint.bodies
    assert main(dry) == 1
    assert "teachers.far.base_url: nobody answers at" in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_computes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", *arguments(data, str(tmp_path / "root")), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    for word in ("teach tiny-large", "index", "score", "train", "evaluate", "to run"):
        assert word in plan
    assert not list((tmp_path / "root").glob("artifacts/*"))
