"""ablate, preferences and inspect on a run of the small world: real commands and artifacts, mistakes told in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydistill.cli import main
from raydistill.config_loading import load_config
from raydistill.pipeline import Chain
from raydistill.run_report import scoring_rows
from tests.small_world import arguments, small_world

ENCODER = "package:raydistill/demo/models/encoder"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a chain with two recorded teachers: one adds the conversation's first question, one adds nothing."""
    data = small_world(tmp_path_factory.mktemp("world"))
    lines = [json.loads(line) for line in (data / "conversations.jsonl").read_text().splitlines()]
    turns = [(turn, line["turns"][0]["user"]) for line in lines for turn in line["turns"]]
    for name, text in (("good", "{0} {1}"), ("bare", "{0}")):
        rows = [{"_id": turn["query_id"], "text": text.format(turn["user"], first)} for turn, first in turns]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teachers = ", ".join(f"{{engine: recorded, name: {name}, rewrites: {data / name}.jsonl}}" for name in ("good", "bare"))
    return arguments(data, str(tmp_path_factory.mktemp("root")), f"teachers=[{teachers}]")


@pytest.fixture(scope="module")
def scored(command: list[str], ray_cluster: None) -> list[str]:
    assert main(["score", *command]) == 0
    return command


def test_before_there_is_an_index_inspect_says_so(command, tmp_path, capsys):
    other = [*command, f"vars.root={tmp_path}"]
    assert main(["inspect", *other, "--say", "what is it?"]) == 1
    assert "run small has no index yet; run `raydistill index`" in capsys.readouterr().err
    assert main(["inspect", *other, "--list", "test"]) == 0
    assert "<::>1" in capsys.readouterr().out


def test_ablate_prints_a_table_and_stores_a_page(scored, capsys):
    assert main(["ablate", *scored]) == 0
    printed = capsys.readouterr().out
    for name in ("good", "bare", "zscore_mean", "rank_fusion", "feedback", "best by gold"):
        assert name in printed
    root = Path(next(each for each in scored if each.startswith("vars.root=")).partition("=")[2])
    document = json.loads((root / "runs/small/ablation-test.json").read_text())
    assert [row["name"] for row in document["rows"]][:2] == ["good", "bare"]
    assert document["turns"] == "test"
    means = {row["name"]: row["measures"]["nDCG@10"]["mean"] for row in document["rows"]}
    assert means["good"] > means["bare"]
    assert means["best by gold"] >= means["good"]
    page = (root / "runs/small/ablation-test.html").read_text()
    assert "Teachers of small, test turns" in page
    assert main(["ablate", *scored, "--set", "train"]) == 0
    assert json.loads((root / "runs/small/ablation-train.json").read_text())["queries"] > document["queries"]


def test_preferences_name_the_better_rewrite(scored, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    assert main(["preferences", *scored, "--to", str(path)]) == 0
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert f"{len(rows)} pairs of {len(rows)} turns in {path}" in capsys.readouterr().out
    judged = [row for row in rows if row["reward"] == "ndcg"]
    assert len(judged) > 10
    for row in rows:  # the good teacher's rewrite is the bare one's and more
        assert {row["chosen_teacher"], row["rejected_teacher"]} == {"good", "bare"}
        good, bare = (
            (row["chosen"], row["rejected"]) if row["chosen_teacher"] == "good" else (row["rejected"], row["chosen"])
        )
        assert good.startswith(f"{bare} ")
    assert all(row["chosen_reward"] - row["rejected_reward"] > 0.1 for row in rows)
    assert main(["preferences", *scored, "--to", str(tmp_path / "pairs.txt")]) == 1
    assert "its name must end in .jsonl or .parquet" in capsys.readouterr().err
    assert main(["preferences", *scored, "--to", str(path), "--prompt", "nosuch"]) == 1
    assert "there is no prompt 'nosuch'" in capsys.readouterr().err


def test_a_turn_is_shown_with_all_who_rewrote_it(scored, capsys):
    assert main(["inspect", *scored, "--list", "test"]) == 0
    ids = capsys.readouterr().out.split()
    query_id = next(each for each in ids if not each.endswith("1"))
    assert main(["inspect", *scored, "--query", query_id, "--student", f"start={ENCODER}", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["query_id"] == query_id
    views = {view["name"]: view for view in document["views"]}
    assert list(views) == ["last turn", "full conversation", "good", "bare", "start"]
    assert views["good"]["text"] == f"{document['question']} {document['history'][0][0]}"
    assert {term["origin"] for term in views["last turn"]["terms"]} == {"question"}
    assert {term["origin"] for term in views["good"]["terms"]} == {"question", "history"}
    assert "added" in {term["origin"] for term in views["start"]["terms"]}
    for view in views.values():
        weights = [term["weight"] for term in view["terms"]]
        assert weights == sorted(weights, reverse=True)
        assert [one["rank"] for one in view["found"]] == list(range(1, len(view["found"]) + 1))
        for one in view["found"]:
            assert one["text"]
            assert sum(value for _, value in one["matches"]) <= one["score"] * (1 + 1e-5)
            assert one["grade"] == document["grades"].get(one["passage_id"])
    relevant = [one["rank"] for one in views["good"]["found"] if (one["grade"] or 0) > 0]
    if relevant:
        assert views["good"]["first_relevant"] == relevant[0]

    assert main(["inspect", *scored, "--query", query_id, "--only", "good", "-k", "2", "--terms", "3"]) == 0
    printed = capsys.readouterr().out
    assert document["question"] in printed
    assert "the run has no student yet" in printed
    assert views["good"]["found"][1]["passage_id"] in printed
    assert views["good"]["found"][2]["passage_id"] not in printed


def test_typed_words_are_searched_as_a_conversation(scored, capsys):
    said = ["--say", "who is the oldest?", "--say", "Nobody knows.", "--say", "and the youngest?"]
    assert main(["inspect", *scored, *said, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["history"] == [["who is the oldest?", "Nobody knows."]]
    assert document["question"] == "and the youngest?"
    assert [view["name"] for view in document["views"]] == ["last turn", "full conversation"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--query", "nosuch"], "no turn of the run is called 'nosuch'; the test set has"),
        (["--say", "a", "--say", "b"], "2 utterances end with the system's"),
        (["--say", "   "], "there is no question"),
        (["--say", "a", "--only", "nosuch"], "--only names 'nosuch', and there is no such view"),
        (["--say", "a", "--student", "x"], "--student is 'x'; write NAME=SOURCE"),
        (["--say", "a", "--student", "x=/nowhere"], "/nowhere"),
        (["--say", "a", "-k", "0"], "-k is 0; it must be at least 1"),
    ],
)
def test_mistakes_are_told_in_a_sentence(scored, words, sentence, capsys):
    assert main(["inspect", *scored, *words]) == 1
    message = capsys.readouterr().err
    assert sentence in message
    assert "Traceback" not in message


def test_what_scorers_read_is_known_of_every_round(scored: list[str]) -> None:
    scorer = f"scorers=[{{kind: bi-encoder, name: dense, depth: 4, encoder: {{model: '{ENCODER}', max_tokens: 64}}}}]"
    with_scorer = [*scored, scorer, "train.teacher_weights={dense: 0}"]
    assert main(["score", *with_scorer]) == 0
    chain = Chain(load_config(scored[1], with_scorer[2:]))
    (row,) = scoring_rows(chain)
    assert (row["round"], row["scorer"], row["kind"]) == (1, "dense", "bi-encoder")
    assert row["turns"] == len(list(chain.inputs.train.queries()))
    assert row["scored"] == row["passages"] > row["turns"]
    assert scoring_rows(Chain(load_config(scored[1], scored[2:]))) == []


def test_a_scorers_endpoint_is_asked_only_where_there_is_something_to_score(scored, capsys):
    scorer = (
        "scorers=[{kind: llm, name: far, depth: 300, llm: {engine: openai, base_url: 'http://127.0.0.1:9/v1', model: m}}]"
    )
    assert main(["score", *scored, scorer, "--dry-run"]) == 1
    assert "scorers.far.llm.base_url: nobody answers at http://127.0.0.1:9/v1/models" in capsys.readouterr().err
    assert main(["index", *scored, scorer, "--dry-run"]) == 0
