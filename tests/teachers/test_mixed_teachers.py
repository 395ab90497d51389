"""Teachers of several kinds in one run on real conversations: a model of our own, one behind HTTP, and recorded rewrites."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raydistill.cli import main
from tests.teachers.endpoint import MODEL, said, serving

CONVERSATIONS = 5
PASSAGES = 300


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def part_of_clapnq(domain: Path, folder: Path) -> dict[str, str]:
    """Write a few conversations of each split, their judgements, and a small pool of passages that holds all gold ones.

    Returns query id -> question.
    """
    found = lines(domain / "conversations.jsonl")
    kept = [
        each
        for split in ("train", "test")
        for each in [conversation for conversation in found if conversation["split"] == split][:CONVERSATIONS]
    ]
    questions = {turn["query_id"]: turn["user"] for each in kept for turn in each["turns"] if turn["query_id"]}
    head, *rows = (domain / "qrels.tsv").read_text().splitlines()
    judged = [row for row in rows if row.split("\t")[0] in questions]
    gold = {row.split("\t")[1] for row in judged}
    with gzip.open(domain / "corpus.jsonl.gz", "rt") as stream:
        passages = [line for number, line in enumerate(stream) if number < PASSAGES or json.loads(line)["_id"] in gold]
    (folder / "conversations.jsonl").write_text("".join(json.dumps(each) + "\n" for each in kept))
    (folder / "qrels.tsv").write_text("\n".join([head, *judged]) + "\n")
    (folder / "corpus.jsonl").write_text("".join(passages))
    return questions


def rewrites_of(root: Path, teacher: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the rows of a teacher's two artifacts by query id, and the sums of their counts."""
    rows: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for path in (root / "artifacts" / "rewrites").glob(f"{teacher}-*"):
        for part in path.glob("*.parquet"):
            rows |= {row["query_id"]: row for row in pq.read_table(part).to_pylist()}
        for name, value in json.loads((path / "_manifest.json").read_text())["metadata"]["counts"].items():
            counts[name] = counts.get(name, 0) + value
    return rows, counts


@pytest.mark.slow  # tests/cluster/test_resume.py has two models in one run, test_recorded the rewrites
@pytest.mark.real_data
def test_two_kinds_of_models_and_recorded_rewrites_teach_in_one_run(
    ray_cluster: None, shared_data: Path, trained_causal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    domain = shared_data / "mtrag" / "clapnq"
    questions = part_of_clapnq(domain, tmp_path)
    sonnet = {row["_id"]: row["text"] for row in lines(domain / "rewrites" / "sonnet.jsonl")}
    by_question = {" ".join(question.split()): sonnet[name] for name, question in questions.items() if name in sonnet}

    def answer(prompt: str, _: int) -> Any:
        """Say what the recorded model said of the question that the prompt ends with: its last line of a user."""
        asked = next(line for line in reversed(prompt.splitlines()) if line.casefold().startswith("user: "))
        return said(by_question[" ".join(asked.split()[1:])])

    source = {"conversations": str(tmp_path / "conversations.jsonl"), "qrels": str(tmp_path / "qrels.tsv")}
    with serving(answer) as endpoint:
        config = {
            "run": "mixed",
            "root": str(tmp_path / "root"),
            "data": {
                "reader": "mtrag",
                "corpus": [str(tmp_path / "corpus.jsonl")],
                "train": {**source, "split": "train"},
                "test": {**source, "split": "test"},
            },
            "teachers": [
                {"name": "own", "engine": "transformers", "model": trained_causal, "dtype": "float32", "prompt": "plain-v1"}
                | {"max_new_tokens": 20, "max_prompt_tokens": 100, "retry": {"tries": 0}, "workers": {"cpus": 1}},
                {"name": "hosted", "engine": "openai", "base_url": endpoint.url, "model": MODEL, "workers": {"cpus": 1}},
                {"name": "told", "engine": "recorded", "rewrites": str(domain / "rewrites" / "mixtral.jsonl")},
            ],
            "student": {"model": "package:raydistill/demo/models/encoder"},
            "index": {"name": "clapnq", "documents": {"kind": "lexical"}, "workers": {"cpus": 1}},
        }
        path = tmp_path / "mixed.yaml"
        path.write_text(json.dumps(config))
        assert main(["ablate", "--config", str(path)]) == 0

    root = tmp_path / "root"
    hosted, counts = rewrites_of(root, "hosted")
    judged = {row.split("\t")[0] for row in (tmp_path / "qrels.tsv").read_text().splitlines()[1:]}
    assert judged <= set(hosted), "every judged turn was rewritten"
    assert {name: row["text"] for name, row in hosted.items() if row["failure"] is None} == {
        name: sonnet[name] for name, row in hosted.items() if row["failure"] is None
    }
    assert len(endpoint.bodies) == len(hosted) == counts["queries"]
    own, counts = rewrites_of(root, "own")
    assert set(own) == set(hosted)
    # The tiny model has room for 128 bytes: longer questions are failures of a kind, each with the question in its place.
    failed = {name: row for name, row in own.items() if row["failure"] is not None}
    assert len(failed) == counts["failed"] < len(own)
    assert all(row["text"] == questions[name] for name, row in failed.items())
    told, _ = rewrites_of(root, "told")
    mixtral = {row["_id"]: row["text"] for row in lines(domain / "rewrites" / "mixtral.jsonl")}
    assert {name: row["raw"] for name, row in told.items()} == {name: mixtral[name] for name in told}
    table = capsys.readouterr().out
    document = json.loads((root / "runs/mixed/ablation-test.json").read_text())
    assert [row["name"] for row in document["rows"]][:3] == ["own", "hosted", "told"]
    assert all(name in table for name in ("own", "hosted", "told", "zscore_mean", "best by gold"))
