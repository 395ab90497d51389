"""What a run reads fits together before anything is computed: who teaches which turns, and what is judged where."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from raydistill.config_loading import build_config
from raydistill.errors import DataError
from raydistill.inputs import RunInputs


def written(folder: Path, name: str, ids: list[str], judged: bool = False, **fields: Any) -> dict[str, Any]:
    """Write conversations of one turn each and return their source."""
    turns = [{"conversation_id": each, "turns": [{"query_id": each, "user": f"{each} of {name}?"}]} for each in ids]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    (folder / f"{name}.tsv").write_text("".join(f"{each}\tp\t1\n" for each in ids))
    qrels = {"qrels": str(folder / f"{name}.tsv")} if judged else {}
    return {"name": name, "conversations": str(folder / f"{name}.jsonl"), **qrels, **fields}


def recorded(folder: Path, name: str, ids: list[str]) -> dict[str, Any]:
    path = folder / f"rewrites-{name}.jsonl"
    path.write_text("".join(json.dumps({"_id": each, "text": f"{each} in full"}) + "\n" for each in ids))
    return {"engine": "recorded", "name": name, "rewrites": str(path)}


def human_topics(folder: Path) -> dict[str, Any]:
    said = {"number": 1, "raw_utterance": "and?", "manual_rewritten_utterance": "and what then?"}
    (folder / "topics.json").write_text(json.dumps([{"number": 31, "turn": [said, {**said, "number": 2}]}]))
    return {"name": "cast", "reader": "cast", "conversations": str(folder / "topics.json")}


HUMAN = {"engine": "recorded", "name": "human", "rewrites": "conversations"}


@pytest.fixture
def run(tmp_path: Path) -> Any:
    test = {**written(tmp_path, "test", ["t1", "t2"], judged=True)}

    def inputs(train: Any, teachers: list[dict[str, Any]], objective: str = "kld", **data: Any) -> RunInputs:
        tree = {
            "run": "r",
            "root": str(tmp_path / "root"),
            "data": {"corpus": [str(tmp_path / "c")], "train": train, "test": test} | data,
            "teachers": teachers,
            "student": {"model": "org/model"},
            "train": {"objective": objective},
        }
        return RunInputs(build_config(tree))

    return inputs


def test_a_recorded_teacher_teaches_the_sets_that_it_covers(run: Any, tmp_path: Path) -> None:
    train = [written(tmp_path, "a", ["a1", "a2"]), human_topics(tmp_path)]
    inputs = run(train, [recorded(tmp_path, "llm", ["a1", "a2", "t1"]), HUMAN])
    inputs.check()
    assert [each.name for each in inputs.teachers_of("train")] == ["llm", "human"]
    assert [each.name for each in inputs.teachers_of("test")] == ["llm"]
    assert inputs.recorded["train"]["human"].held == {"31_1": "and what then?", "31_2": "and what then?"}


def test_turns_without_any_rewrite_are_counted_by_source(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = [written(tmp_path, "a", ["a1", "a2"]), written(tmp_path, "b", ["b1"]), human_topics(tmp_path)]
    with caplog.at_level(logging.WARNING, logger="raydistill"):
        run(train, [recorded(tmp_path, "llm", ["a1"]), HUMAN]).check()
    assert "training source a: 1 of 2 turns have no rewrite and are left out" in caplog.text
    assert "training source b: no teacher has a rewrite of any of its 1 turns, so it teaches nothing" in caplog.text
    assert "no teacher has a rewrite of a test turn" in caplog.text
    assert "source cast" not in caplog.text


def test_a_teacher_that_knows_no_turn_at_all_is_refused(run: Any, tmp_path: Path) -> None:
    train = written(tmp_path, "a", ["a1"])
    with pytest.raises(
        DataError, match=r"teacher llm: .*rewrites-llm\.jsonl: none of the ids .* like 'a1', the file's like 'x'"
    ):
        run(train, [recorded(tmp_path, "llm", ["x"])]).check()
    with pytest.raises(DataError, match="teacher human: the conversations hold no rewrites of their own"):
        run(train, [HUMAN]).check()


def test_an_objective_cannot_follow_a_teacher_without_training_turns(run: Any, tmp_path: Path) -> None:
    teachers = [recorded(tmp_path, "llm", ["a1"]), recorded(tmp_path, "late", ["t1"])]
    with pytest.raises(
        DataError, match=r"train\.objective names the teacher 'late', which has a rewrite of no training turn"
    ):
        run(written(tmp_path, "a", ["a1"]), teachers, objective="kld(teacher=late)").check()


def test_training_turns_without_any_rewrite_at_all_are_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no teacher has a rewrite of any of the 1 training turns"):
        run(written(tmp_path, "a", ["a1"]), [recorded(tmp_path, "llm", ["t1"])]).check()


def test_judgements_are_those_of_each_sources_own_file(run: Any, tmp_path: Path) -> None:
    train = [written(tmp_path, "a", [f"a{n}" for n in range(4)], judged=True), written(tmp_path, "b", ["b1"])]
    inputs = run(train, [recorded(tmp_path, "llm", ["a1"])], validation={"share": 0.5})
    assert {uri: set(qrels) for uri, qrels in inputs.judgements().items()} == {
        str(tmp_path / "a.tsv"): {"a0", "a1", "a2", "a3"},
        str(tmp_path / "test.tsv"): {"t1", "t2"},
    }


def test_a_validation_source_without_judgements_is_refused(run: Any, tmp_path: Path) -> None:
    train, validation = written(tmp_path, "a", ["a1"]), written(tmp_path, "v", ["v1"])
    with pytest.raises(DataError, match=r"no turn of data\.validation has a judgement"):
        run(train, [recorded(tmp_path, "llm", ["a1"])], validation=validation).check()


def test_test_turns_among_the_validation_turns_are_warned_of(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, teachers = written(tmp_path, "a", ["a1"]), [recorded(tmp_path, "llm", ["a1"])]
    validation = written(tmp_path, "test", ["t1", "t2"], judged=True)
    with caplog.at_level(logging.WARNING, logger="raydistill"):
        run(train, teachers, validation=validation).check()
    assert "2 turns are in data.validation and in data.test" in caplog.text


def test_test_turns_among_the_training_turns_are_warned_of_whatever_their_ids(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns = [{"query_id": f"t{number}", "user": f"question {number}?"} for number in (1, 2, 3)]
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"conversation_id": "c", "turns": turns}) + "\n")
    (tmp_path / "long.tsv").write_text("t2\tp\t1\n")
    source = {"name": "long", "conversations": str(path)}
    train = {**source, "prefix_ids": True}
    inputs = run(train, [recorded(tmp_path, "llm", ["long:t1"])], test={**source, "qrels": str(tmp_path / "long.tsv")})
    with caplog.at_level(logging.WARNING, logger="raydistill"):
        inputs.check()
    assert "2 turns are in data.train and in data.test" in caplog.text


def test_what_a_teacher_reads_identifies_its_turns(run: Any, tmp_path: Path) -> None:
    train = human_topics(tmp_path)
    llm = recorded(tmp_path, "llm", ["31_1"])
    inputs = run(train, [llm, HUMAN])
    by_id, held = (inputs.turns_fingerprint("train", each) for each in inputs.teachers_of("train"))
    path = tmp_path / "topics.json"
    path.write_text(path.read_text().replace("what then", "what else"))
    changed = run(train, [llm, HUMAN])
    assert [
        changed.turns_fingerprint("train", each) == old
        for each, old in zip(changed.teachers_of("train"), (by_id, held), strict=True)
    ] == [True, False]


def generating(prompt: str, retry_prompt: str | None = None) -> dict[str, Any]:
    retry = {"retry": {"prompt": retry_prompt}} if retry_prompt else {}
    return {"engine": "transformers", "name": "llm", "model": "org/llm", "prompt": prompt, **retry}


def topics(folder: Path, answer: str, fact: str) -> dict[str, Any]:
    turn = {"turn_id": 1, "utterance": "what shoes?", "response": answer}
    (folder / "ikat.json").write_text(json.dumps([{"number": "9", "turns": [turn], "ptkb": [fact]}]))
    return {"name": "ikat", "reader": "ikat", "conversations": str(folder / "ikat.json")}


@pytest.mark.parametrize(
    ("prompts", "answer", "facts"),
    [
        (("zero-shot-v1",), "", ()),
        (("answer-aware-v1",), "Light ones.", ()),
        (("personal-v1",), "", ("I run.",)),
        (("zero-shot-v1", "personal-v1"), "", ("I run.",)),
    ],
    ids=str,
)
def test_answers_and_facts_go_to_the_prompts_that_show_them_and_answers_never_to_test_turns(
    run: Any, tmp_path: Path, prompts: tuple[str, ...], answer: str, facts: tuple[str, ...]
) -> None:
    source = topics(tmp_path, "Light ones.", "I run.")
    (tmp_path / "q.txt").write_text("9_1 0 p 1\n")
    both = run(source, [generating(*prompts)], test={**source, "qrels": str(tmp_path / "q.txt")})
    (teacher,) = both.teachers_of("train")
    (train,), (test,) = both.asked_of("train", teacher), both.asked_of("test", teacher)
    assert (train.answer, train.facts) == (answer, facts)
    assert (test.answer, test.facts) == ("", facts)

    def identity(told: str, fact: str) -> str:
        fresh = run(topics(tmp_path, told, fact), [generating(*prompts)])
        return str(fresh.turns_fingerprint("train", fresh.teachers_of("train")[0]))

    base = identity("Light ones.", "I run.")
    assert (identity("Heavy ones.", "I run.") != base) == bool(answer)
    assert (identity("Light ones.", "I swim.") != base) == bool(facts)
