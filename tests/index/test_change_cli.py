"""Changing an index through the command line: what is printed, and what is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raydistill.cli import main
from raydistill.index.publish import current_version
from raydistill.index.search import open_searcher
from raydistill.index.segment_group import Holding, SegmentGroup, corpora_of
from tests.small_world import arguments, small_world

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on a small world and return its status, output and errors."""
    data = small_world(tmp_path / "data")

    def command(name: str, *options: str, overrides: tuple[str, ...] = ()) -> tuple[int, str, str]:
        status = main([name, *options, *arguments(data, str(tmp_path / "root")), *overrides])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


@pytest.mark.slow  # what the commands call is tested by test_change_job and test_change_machine
def test_an_index_is_changed_and_compacted_by_commands(run: Run, tmp_path: Path) -> None:
    status, _, errors = run("append", "--passages", str(tmp_path / "data" / "corpus.jsonl"))
    assert status == 1
    assert "holds no published index; run the index stage" in errors
    assert run("index")[0] == 0
    root = str(tmp_path / "root")
    first = current_version(root, "demo")
    new = tmp_path / "new.jsonl"
    new.write_text("".join(json.dumps({"_id": f"n{n}", "title": "", "text": "a river and a town"}) + "\n" for n in range(3)))
    status, output, _ = run("append", "--passages", str(new))
    assert status == 0
    assert "3 passages added, 0 deleted" in output
    assert f"{first.live + 3} passages in" in output
    assert "nothing to do, or done before" in run("append", "--passages", str(new))[1]
    with new.open("a") as file:
        file.write(json.dumps({"_id": "n9", "title": "", "text": "another"}) + "\n")
    status, _, errors = run("append", "--passages", str(new))
    assert status == 1
    assert "3 of 4 passages to append are in" in errors
    status, output, _ = run("replace", "--passages", str(new), "--missing", "ok")
    assert "4 passages added, 3 deleted" in output
    assert "1 ids were not in the index and were added: 'n9'" in output
    (tmp_path / "named.jsonl").write_text(json.dumps({"_id": "m1", "body": "a text under another name"}) + "\n")
    columns = "data.corpus_columns={text: body}"
    status, output, _ = run("append", "--passages", str(tmp_path / "named.jsonl"), overrides=(columns,))
    assert "1 passages added, 0 deleted" in output
    (tmp_path / "gone.txt").write_text("n0\nn1\n\nnobody\n")
    assert run("delete", "--id", "m1")[0] == 0
    status, _, errors = run("delete", "--ids", str(tmp_path / "gone.txt"), "--id", "n2")
    assert "1 of 4 passages to delete are not in" in errors
    status, output, _ = run("delete", "--ids", str(tmp_path / "gone.txt"), "--id", "n2", "--missing", "ok")
    assert "0 passages added, 3 deleted" in output
    assert "1 ids were not in the index and were passed over: 'nobody'" in output
    # A passage of the build is replaced, so that its text is in two corpora.
    old = json.loads((tmp_path / "data" / "corpus.jsonl").read_text().splitlines()[5])
    (tmp_path / "edited.jsonl").write_text(json.dumps({**old, "text": "edited since"}) + "\n")
    assert run("replace", "--passages", str(tmp_path / "edited.jsonl"))[0] == 0
    status, output, _ = run("compact")
    assert (status, "passages added" in output) == (0, False)
    version = current_version(root, "demo")
    # The full segment that lost one passage is not worth rewriting.
    assert (version.live, version.deleted) == (first.live + 1, 1)
    assert open_searcher(version).find(["n1"]).tolist() == [-1]
    # Every passage still has its text, in whatever segment it is now.
    holding = Holding(
        root, "demo", version.version, version.fingerprint, tuple(range(len(version.segments))), corpora_of(version)
    )
    found = SegmentGroup(1, 1).hits(holding, np.arange(version.passages))
    texts = {hit.passage_id: hit.text or "" for hit in found}
    assert len(texts) == version.live
    assert texts["n9"].endswith("another")
    assert texts[old["_id"]].endswith("edited since")
    lines = [json.loads(line) for line in (tmp_path / "data" / "corpus.jsonl").read_text().splitlines()]
    assert all(texts[line["_id"]].endswith(line["text"]) for line in lines if line["_id"] != old["_id"])
